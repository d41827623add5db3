use super::*;

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 18, 0, 2);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 30, 55, 55);

fn piece(source: Ipv4Addr, identification: u16, is_first: bool) -> Fragment {
    let key = Key {
        tunnelled: false,
        source,
        destination: SERVICE,
        identification,
        protocol: 17,
    };
    Fragment { key, is_first }
}

fn first(identification: u16) -> Fragment {
    piece(SOURCE, identification, true)
}

fn later(identification: u16) -> Fragment {
    piece(SOURCE, identification, false)
}

fn go(frames: &[&[u8]]) -> Taken {
    Taken::Go(frames.iter().map(|frame| frame.to_vec()).collect())
}

#[test]
fn p04_the_first_goes_first_and_the_others_behind_it_in_their_order() {
    let (mut fragments, now) = (Fragments::default(), Instant::now());
    assert_eq!(fragments.take(later(1), b"c", now), Taken::Held);
    assert_eq!(fragments.take(later(2), b"other", now), Taken::Held);
    assert_eq!(fragments.take(later(1), b"b", now), Taken::Held);
    assert_eq!(fragments.take(first(1), b"a", now), go(&[b"a", b"c", b"b"]));
    assert_eq!(
        fragments.take(later(1), b"d", now),
        go(&[b"d"]),
        "it was on its way up"
    );
    assert_eq!(
        fragments.take(later(1), b"d", now),
        go(&[b"d"]),
        "duplicates are the receiver's"
    );
    assert_eq!(fragments.take(first(1), b"a", now), go(&[b"a"]));
}

#[test]
fn p04_what_waits_in_vain_is_given_back_in_time() {
    let (mut fragments, now) = (Fragments::default(), Instant::now());
    assert_eq!(fragments.next_end(), None);
    fragments.take(later(1), b"b", now);
    let after = now + Duration::from_millis(10);
    fragments.take(later(2), b"c", after);
    assert_eq!(fragments.next_end(), Some(now + HELD_FOR));
    assert_eq!(fragments.expire(after), Vec::<Vec<u8>>::new());
    assert_eq!(fragments.expire(now + HELD_FOR), [b"b"]);
    assert_eq!(fragments.next_end(), Some(after + HELD_FOR));
    assert_eq!(fragments.take(first(2), b"a", after), go(&[b"a", b"c"]));
    assert_eq!(fragments.expire(after + 2 * HELD_FOR), Vec::<Vec<u8>>::new());
    assert_eq!(
        fragments.take(later(2), b"late", now),
        Taken::Held,
        "of another datagram"
    );
    fragments.expire(now + 2 * HELD_FOR);
    assert_empty(&fragments);
}

#[test]
fn p04_a_datagram_that_began_late_is_known_for_as_long_as_any() {
    let (mut fragments, now) = (Fragments::default(), Instant::now());
    fragments.take(later(1), b"b", now);
    let begun = now + HELD_FOR / 2;
    fragments.take(first(1), b"a", begun);
    fragments.expire(now + HELD_FOR);
    assert_eq!(fragments.take(later(1), b"c", now + HELD_FOR), go(&[b"c"]));
    fragments.expire(begun + HELD_FOR);
    assert_empty(&fragments);
}

#[test]
fn one_datagram_takes_a_fixed_amount_of_memory() {
    let (mut fragments, now) = (Fragments::default(), Instant::now());
    let frame = vec![0; 1_500];
    let held = (0..1_000)
        .filter(|_| fragments.take(later(1), &frame, now) == Taken::Held)
        .count();
    assert_eq!(held, BYTES_PER_DATAGRAM / cost(&frame));
    assert!(held * 1_400 > 65_535, "the longest datagram finds room");
    assert_eq!(
        fragments.take(later(2), &frame, now),
        Taken::Held,
        "another one does too"
    );
}

#[test]
fn one_source_leaves_room_for_the_others_and_all_take_a_fixed_amount_of_memory() {
    let (mut fragments, now) = (Fragments::default(), Instant::now());
    let frame = vec![0; 9_000];
    for source in 0..20 {
        let source = Ipv4Addr::from(0x0a12_0000 + source);
        for identification in 0..2_000 {
            fragments.take(piece(source, identification, false), &frame, now);
        }
        let share = fragments.shares.get(&source).map_or(0, |share| share.bytes);
        assert!(share <= BYTES_PER_SOURCE, "{share}");
    }
    assert!(
        fragments.bytes <= BYTES && fragments.bytes + cost(&frame) * 8 > BYTES,
        "{}",
        fragments.bytes
    );
    let held = fragments.bytes / cost(&frame);
    assert_eq!(fragments.expire(now + HELD_FOR).len(), held);
    assert_empty(&fragments);
}

#[test]
fn a_flood_of_datagrams_takes_a_fixed_amount_of_memory() {
    let (mut fragments, now) = (Fragments::default(), Instant::now());
    for source in 0..20 {
        let source = Ipv4Addr::from(0x0a12_0000 + source);
        for identification in 0..2_000 {
            let taken = fragments.take(piece(source, identification, true), b"a", now);
            assert_eq!(taken, go(&[b"a"]), "a first fragment goes on whatever there is");
        }
        assert!(fragments.shares.get(&source).map_or(0, |share| share.datagrams) <= DATAGRAMS_PER_SOURCE);
    }
    assert_eq!(fragments.datagrams.len(), DATAGRAMS);
    assert_eq!(fragments.take(later(60_000), b"b", now), Taken::Full);
    fragments.expire(now + HELD_FOR);
    assert_empty(&fragments);
}

fn assert_empty(fragments: &Fragments) {
    assert!(fragments.datagrams.is_empty() && fragments.ends.is_empty() && fragments.shares.is_empty());
    assert_eq!(fragments.bytes, 0);
}

/// A frame of the tap around an IPv4 packet.
fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; VIRTIO_HEADER + ETHERNET_LENGTH];
    frame[VIRTIO_HEADER + ETHERNET_LENGTH - 2..].copy_from_slice(&ETHERTYPE_IPV4);
    frame.extend_from_slice(packet);
    frame
}

fn packet(destination: Ipv4Addr, offset: u16, more_fragments: bool) -> Vec<u8> {
    let header = etherparse::Ipv4Header {
        identification: 77,
        fragment_offset: offset.try_into().expect("thirteen bits"),
        more_fragments,
        protocol: etherparse::IpNumber::UDP,
        source: SOURCE.octets(),
        destination: destination.octets(),
        ..etherparse::Ipv4Header::new(8, 64, etherparse::IpNumber::UDP, [0; 4], [0; 4])
            .expect("a short payload")
    };
    [header.to_bytes().to_vec(), vec![0x11; 8]].concat()
}

#[test]
fn fragments_are_told_from_the_rest() {
    const PORT: u16 = 50_103;
    let of = |packet: &[u8]| Fragment::of(&frame(packet), PORT);
    assert_eq!(of(&packet(SERVICE, 0, false)), None, "whole");
    assert_eq!(of(&packet(SERVICE, 0, true)), Some(first(77)));
    assert_eq!(of(&packet(SERVICE, 5, true)), Some(later(77)));
    assert_eq!(of(&packet(SERVICE, 9, false)), Some(later(77)));
    assert_eq!(
        of(&packet(Ipv4Addr::new(192, 0, 2, 1), 9, false)),
        None,
        "not the overlay's"
    );

    let inner = packet(SERVICE, 5, true);
    let tunnelled = |port| {
        let builder = etherparse::PacketBuilder::ipv4([192, 0, 2, 11], [192, 0, 2, 1], 64).udp(51_000, port);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, &inner).expect("written to memory");
        bytes
    };
    let expected = Key {
        tunnelled: true,
        ..later(77).key
    };
    assert_eq!(of(&tunnelled(PORT)).map(|fragment| fragment.key), Some(expected));
    assert_eq!(of(&tunnelled(53)), None);
    let bytes = frame(&tunnelled(PORT));
    for length in 0..bytes.len() {
        let cut = Fragment::of(&bytes[..length], PORT);
        assert!(cut.is_none() || length >= bytes.len() - 8, "{length}");
    }
}
