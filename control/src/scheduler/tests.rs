use proptest::prelude::*;
use protocol::cluster::Capacity;
use protocol::instance::InstanceStatus;
use protocol::ports::TransportProtocol;
use serde_json::{Value, json};

use super::*;

#[test]
fn the_users_client_and_server_go_to_two_nodes() {
    let service = job(json!({"vcpus": 1, "memory": 100}));
    let mut nodes = [node("n1"), node("n2")];
    assert_eq!(choose(&MostUnreserved, &service, &nodes).expect("room").id, "n1");
    reserve(&mut nodes[0], &service);
    assert_eq!(choose(&MostUnreserved, &service, &nodes).expect("room").id, "n2");
}

#[test]
fn equal_shares_go_where_fewer_instances_are_and_then_by_id() {
    let service = job(json!({}));
    let mut nodes = [node("n3"), node("n2"), node("n1")];
    assert_eq!(choose(&MostUnreserved, &service, &nodes).expect("room").id, "n1");
    nodes[2].instances = 1;
    assert_eq!(choose(&MostUnreserved, &service, &nodes).expect("room").id, "n2");
}

#[test]
fn each_constraint_is_refused_with_its_own_reason() {
    let inactive = |candidate: &mut Candidate| candidate.active = false;
    let nothing = |_: &mut Candidate| {};
    let reserved = |candidate: &mut Candidate| {
        candidate.vcpus_free = 1;
        candidate.largest_vcpus = 1;
        candidate.memory_free = 50;
        candidate.largest_memory = 50;
        candidate.vgpus = 1;
        candidate.vgpus_free = 0;
        candidate.ports_taken = host_ports("80:80").into_iter().collect();
    };
    type Change = fn(&mut Candidate);
    let cases: [(Value, Change, &str, InstanceStatus); 13] = [
        (
            json!({}),
            inactive,
            "n1: it is not active",
            InstanceStatus::NoNodeFound,
        ),
        (
            json!({"constraints": [{"type": "direct", "cluster": "other"}]}),
            nothing,
            "n1: the descriptor wants cluster \"other\"",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
        (
            json!({"constraints": [{"type": "direct", "node": "h7;h8"}]}),
            nothing,
            "n1: the descriptor wants host \"h7;h8\"",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
        (
            json!({"constraints": [{"type": "clusters", "allowed": ["c7"]}]}),
            nothing,
            "n1: the descriptor allows the clusters [\"c7\"]",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
        (
            json!({"virtualization": "unikernel"}),
            nothing,
            "n1: it does not run \"unikernel\", only [\"docker\"]",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
        (
            json!({"arch": ["arm64"]}),
            nothing,
            "n1: architecture [\"arm64\"] is wanted, it has [\"amd64\"]",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
        (
            json!({"vcpus": 3}),
            nothing,
            "n1: 3 vCPUs are wanted, it has 2 in all",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
        (
            json!({"memory": 1001, "vgpus": 1}),
            nothing,
            "n1: 1001 MiB of memory are wanted, it has 1000 in all, 1 GPUs are wanted, it has 0",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
        (
            json!({"vcpus": 2}),
            reserved,
            "n1: 2 vCPUs are wanted, 1 are free",
            InstanceStatus::NoWorkerCapacity,
        ),
        (
            json!({"memory": 100}),
            reserved,
            "n1: 100 MiB of memory are wanted, 50 are free",
            InstanceStatus::NoWorkerCapacity,
        ),
        (
            json!({"vgpus": 1}),
            reserved,
            "n1: 1 GPUs are wanted, 0 are free",
            InstanceStatus::NoWorkerCapacity,
        ),
        (
            json!({"port": "8080:80;80"}),
            reserved,
            "n1: port 80/tcp is published by another instance",
            InstanceStatus::NoWorkerCapacity,
        ),
        (
            json!({"vcpus": 2, "arch": ["arm64"]}),
            reserved,
            "n1: architecture [\"arm64\"] is wanted, it has [\"amd64\"], 2 vCPUs are wanted, 1 are free",
            InstanceStatus::NoQualifiedWorkerFound,
        ),
    ];
    for (wish, change, expected, status) in cases {
        let mut candidate = node("n1");
        change(&mut candidate);
        let nowhere = choose(&MostUnreserved, &job(wish.clone()), &[candidate]).expect_err("refused");
        assert_eq!(
            (nowhere.to_string().as_str(), nowhere.status_of_nodes()),
            (expected, status),
            "{wish}"
        );
    }
}

#[test]
fn what_is_wished_for_is_found() {
    let wishes = [
        json!({"constraints": [{"type": "direct", "cluster": "c1", "node": "h7; host-n1"}]}),
        json!({"constraints": [{"type": "clusters", "allowed": ["c7", "c1"]}, {"type": "latency", "area": "munich"}]}),
        json!({"virtualization": "container"}),
        json!({"arch": ["arm64", "AMD64"], "vcpus": 2, "memory": 1000}),
        json!({"port": "80:80/udp"}),
    ];
    for wish in wishes {
        let mut candidate = node("n1");
        candidate.ports_taken = host_ports("80:80").into_iter().collect();
        assert_eq!(
            MostUnreserved.filter(&job(wish.clone()), &candidate),
            [],
            "{wish}"
        );
    }
}

#[test]
fn a_cluster_is_judged_by_its_largest_node() {
    let capacity = Capacity {
        active_nodes: 2,
        vcpus: 4,
        vcpus_free: 3,
        memory: 2000,
        memory_free: 1800,
        largest_vcpus: 2,
        largest_memory: 900,
        virtualization: vec!["docker".to_owned()],
        hosts: vec!["h1".to_owned(), "h2".to_owned()],
        ..Capacity::default()
    };
    let cluster = Candidate::cluster("1", "c1", true, &capacity, 0);
    let wish = job(json!({"vcpus": 3, "constraints": [{"type": "direct", "cluster": "c1", "node": "h2"}]}));
    assert_eq!(
        choose(&MostUnreserved, &wish, std::slice::from_ref(&cluster))
            .expect_err("too large")
            .to_string(),
        "c1: 3 vCPUs are wanted, 2 are free on one node"
    );
    assert!(
        choose(
            &MostUnreserved,
            &job(json!({"vcpus": 2, "memory": 900})),
            &[cluster]
        )
        .is_ok()
    );
    for (connected, capacity) in [(false, capacity), (true, Capacity::default())] {
        let away = Candidate::cluster("1", "c1", connected, &capacity, 0);
        assert_eq!(MostUnreserved.filter(&wish, &away), [Refusal::Inactive]);
    }
}

#[test]
fn published_ports_are_read_as_they_are_written() {
    let tcp = |port| HostPort {
        protocol: TransportProtocol::Tcp,
        port,
    };
    let udp = HostPort {
        protocol: TransportProtocol::Udp,
        port: 53,
    };
    assert_eq!(host_ports("80; 8080:80/tcp;53:53/udp"), [tcp(80), tcp(8080), udp]);
    assert_eq!(host_ports(""), []);
    assert_eq!(host_ports("x:80;70000;"), []);
}

proptest! {
    #[test]
    fn nothing_is_ever_promised_twice(
        wishes in proptest::collection::vec((0_u64..4, 0_u64..600, 0_u16..4), 1..40),
        sizes in proptest::collection::vec((1_u64..8, 100_u64..2000), 1..5),
    ) {
        let mut nodes: Vec<Candidate> = sizes.iter().enumerate().map(|(index, (vcpus, memory))| Candidate {
            vcpus: *vcpus, vcpus_free: *vcpus, largest_vcpus: *vcpus, largest_vcpus_ever: *vcpus,
            memory: *memory, memory_free: *memory, largest_memory: *memory, largest_memory_ever: *memory,
            ..node(&format!("n{index}"))
        }).collect();
        for (vcpus, memory, port) in wishes {
            let port = if port == 0 { String::new() } else { format!("{port}:80") };
            let wish = job(json!({"vcpus": vcpus, "memory": memory, "port": port}));
            let fits = |node: &Candidate| node.vcpus_free >= vcpus
                && node.memory_free >= memory
                && host_ports(&port).iter().all(|port| !node.ports_taken.contains(port));
            match choose(&MostUnreserved, &wish, &nodes).map(|node| node.id.clone()) {
                Ok(id) => {
                    let chosen = nodes.iter_mut().find(|node| node.id == id).expect("one of them");
                    prop_assert!(fits(chosen));
                    reserve(chosen, &wish);
                }
                Err(nowhere) => {
                    prop_assert!(!nodes.iter().any(fits));
                    prop_assert_eq!(nowhere.refusals.len(), nodes.len());
                    prop_assert!(nowhere.refusals.iter().all(|(_, reasons)| !reasons.is_empty()));
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(
        loads in proptest::collection::vec((0_u64..=2, 0_u64..=1000, 0_u32..3), 1..6),
        rotation in 0_usize..6,
    ) {
        let mut nodes: Vec<Candidate> = loads.iter().enumerate().map(|(index, (vcpus, memory, instances))| Candidate {
            vcpus_free: *vcpus, memory_free: *memory, instances: *instances, ..node(&format!("n{index}"))
        }).collect();
        let wish = job(json!({}));
        let before = choose(&MostUnreserved, &wish, &nodes).map(|node| node.id.clone());
        let length = nodes.len();
        nodes.rotate_left(rotation % length);
        prop_assert_eq!(choose(&MostUnreserved, &wish, &nodes).map(|node| node.id.clone()), before);
    }
}

fn reserve(node: &mut Candidate, job: &Job) {
    node.vcpus_free -= job.vcpus;
    node.memory_free -= job.memory;
    node.largest_vcpus = node.vcpus_free;
    node.largest_memory = node.memory_free;
    node.ports_taken.extend(host_ports(&job.port));
    node.instances += 1;
}

fn node(id: &str) -> Candidate {
    Candidate {
        tier: Tier::Node,
        id: id.to_owned(),
        name: id.to_owned(),
        cluster: "c1".to_owned(),
        hosts: vec![format!("host-{id}")],
        active: true,
        virtualization: vec!["docker".to_owned()],
        architectures: vec!["amd64".to_owned()],
        vcpus: 2,
        vcpus_free: 2,
        memory: 1000,
        memory_free: 1000,
        largest_vcpus: 2,
        largest_memory: 1000,
        largest_vcpus_ever: 2,
        largest_memory_ever: 1000,
        vgpus: 0,
        vgpus_free: 0,
        ports_taken: std::collections::BTreeSet::new(),
        instances: 0,
    }
}

fn job(wish: Value) -> Job {
    let mut whole = json!({
        "microserviceID": "65f0", "job_name": "a.b.c.d", "image": "nginx", "virtualization": "docker"
    });
    for (key, value) in wish.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    serde_json::from_value(whole).expect("job")
}
