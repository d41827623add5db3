//! A node without interfaces: the loaded programs, their tables, and what a run of them did.

use std::collections::HashMap;
use std::path::PathBuf;

use aya::maps::PerCpuValues;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use dataplane_ebpf::address::TUNNEL_PORT;
use dataplane_ebpf::probe::ANSWERED_PER_SECOND;
use dataplane_ebpf::tables::{Flow, FlowKey, Trace};
use dataplane_ebpf::verdict::{Action, DropReason};
use netmanager::dataplane::{CounterRow, Globals, Program, Tables, load, read_counters};
use nix::time::{ClockId, clock_gettime};

use crate::frame::hex;
use crate::oracle;
use crate::topology::{self, A, HOST, HOST_B, INTERFACE, Site};

/// What the programs return.
pub const PASS: i32 = -1;
pub const SHOT: i32 = 2;
pub const REDIRECT: i32 = 7;

/// The programs on the way out of an endpoint and of the node, and who speaks there.
pub const WAYS_OUT: [(Program, [u8; 4]); 3] = [
    (Program::FromEndpoint, A),
    (Program::FromOak0, A),
    (Program::FromHost, HOST),
];

/// What is to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Did(Action),
    Dropped(DropReason),
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Did(action) => action.as_str(),
            Self::Dropped(reason) => reason.as_str(),
        }
    }

    /// The verdict that goes with it, as the design's walk has it.
    fn verdict(self, program: Program) -> i32 {
        match (self, program) {
            (Self::Did(Action::Pass | Action::Stranger), _)
            | (Self::Did(Action::DeliverHost), Program::FromOak0)
            | (Self::Did(Action::Park), Program::FromHost) => PASS,
            (Self::Did(Action::ProbeReceived), _) => SHOT,
            (Self::Did(_), _) => REDIRECT,
            (Self::Dropped(_), _) => SHOT,
        }
    }
}

/// What the kernel is told about the frame.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The interface it comes from; it has to exist.
    pub interface: u32,
    /// The interface it came into the namespace by; zero for what the node itself sends.
    pub ingress: u32,
    /// Payload of each segment, for a superframe.
    pub segment_size: u32,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            interface: INTERFACE,
            ingress: 0,
            segment_size: 0,
        }
    }
}

impl Context {
    /// As `struct __sk_buff` lies in memory; the kernel wants all other fields to be zero.
    fn bytes(self) -> [u8; 192] {
        const INGRESS: usize = 36;
        const INTERFACE: usize = 40;
        const SEGMENTS: usize = 164;
        const SEGMENT_SIZE: usize = 176;
        let mut bytes = [0; 192];
        let segments = u32::from(self.segment_size != 0) * 2;
        for (offset, value) in [
            (INGRESS, self.ingress),
            (INTERFACE, self.interface),
            (SEGMENTS, segments),
            (SEGMENT_SIZE, self.segment_size),
        ] {
            bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Ran {
    pub verdict: i32,
    pub frame: Vec<u8>,
    /// By how much counters grew.
    pub counted: Vec<Counted>,
}

/// Hook, name, packets and bytes.
pub type Counted = (String, String, u64, u64);

pub struct Host {
    site: Site,
    programs: aya::Ebpf,
    pub tables: Tables,
}

impl Host {
    /// The node of `site`, which knows the whole topology.
    pub fn at(site: Site) -> Self {
        Self::with_pins(site, &[])
    }

    /// The same, whose programs note what each walk did.
    pub fn traced(site: Site) -> Self {
        Self::load(site, &[], true)
    }

    /// The same, with the maps that are pinned at these paths.
    pub fn with_pins(site: Site, pins: &[(&str, PathBuf)]) -> Self {
        Self::load(site, pins, false)
    }

    fn load(site: Site, pins: &[(&str, PathBuf)], trace_walks: bool) -> Self {
        let globals = Globals {
            oak0_interface: INTERFACE,
            tunnel_port: TUNNEL_PORT,
            host_address: match site {
                Site::A => HOST,
                Site::B | Site::C => HOST_B,
            }
            .into(),
            probes_answered: ANSWERED_PER_SECOND,
            trace_walks,
        };
        let (programs, mut tables) = load(globals, pins).expect("the kernel takes the programs");
        topology::fill(&mut tables, site);
        Self {
            site,
            programs,
            tables,
        }
    }

    /// The program, to be run by several threads at once.
    pub fn program(&self, program: Program) -> &SchedClassifier {
        let loaded = self
            .programs
            .program(program.name())
            .expect("a program of the object");
        loaded.try_into().expect("a tc program")
    }

    /// Runs `program` on `frame`, and checks that right checksums stay right (P-51).
    #[track_caller]
    pub fn run_with(&self, program: Program, frame: &[u8], context: Context) -> Ran {
        let before = self.counters();
        let (verdict, out) = run(self.program(program), frame, context);
        if verdict != SHOT && oracle::check(frame).is_ok() {
            assert_eq!(oracle::check(&out), Ok(()), "{} -> {}", hex(frame), hex(&out));
        }
        Ran {
            verdict,
            frame: out,
            counted: difference(&before, &self.counters()),
        }
    }

    #[track_caller]
    pub fn run(&self, program: Program, frame: &[u8]) -> Ran {
        self.run_with(program, frame, Context::default())
    }

    /// Runs `program` on `frame` and requires all there is to see: the verdict, every byte of the frame that comes
    /// out, and that exactly one counter grew, by this packet.
    #[track_caller]
    pub fn expect(&self, case: &str, program: Program, frame: &[u8], action: Action, out: &[u8]) {
        let ran = self.run(program, frame);
        assert_eq!(hex(&ran.frame), hex(out), "{case}: frame");
        assert_outcome(case, program, &ran, Outcome::Did(action));
    }

    /// As [`Host::expect`], for a frame that stays as it is and goes on to the next program.
    #[track_caller]
    pub fn passes(&self, case: &str, program: Program, frame: &[u8]) {
        self.expect(case, program, frame, Action::Pass, frame);
    }

    /// As [`Host::expect`], for a frame that ends here.
    #[track_caller]
    pub fn drops(&self, case: &str, program: Program, frame: &[u8], reason: DropReason) {
        let ran = self.run(program, frame);
        assert_outcome(case, program, &ran, Outcome::Dropped(reason));
    }

    /// Runs `program` on `frame`; what the walk noted. Nothing else may run on this node meanwhile.
    #[track_caller]
    pub fn trace(&mut self, program: Program, frame: &[u8]) -> (Ran, Trace) {
        let trace = &mut self.tables.trace;
        let cpus = trace.get(&0, 0).expect("readable").iter().count();
        let cleared = PerCpuValues::try_from(vec![Trace::default(); cpus]).expect("a value for each CPU");
        trace.set(0, cleared, 0).expect("room");
        let ran = self.run(program, frame);
        let noted = self.tables.trace.get(&0, 0).expect("readable");
        let walks: Vec<Trace> = noted.iter().filter(|walk| walk.row != 0).copied().collect();
        let [walk] = walks[..] else {
            panic!("one walk on one CPU: {walks:?}");
        };
        (ran, walk)
    }

    /// All flows, none of which is in both tables. When they were seen last is checked to be no later than now, and left out.
    pub fn flows(&self) -> HashMap<FlowKey, Flow> {
        let now = coarse_time();
        let entries = self.tables.flows.iter().chain(self.tables.unanswered.iter());
        let mut flows = HashMap::new();
        for entry in entries {
            let (key, mut flow) = entry.expect("a readable map");
            let last_seen = std::mem::take(&mut flow.last_seen);
            assert!(last_seen <= now && last_seen + 60 > now, "{last_seen} of {now}");
            assert_eq!(flows.insert(key, flow), None, "in both tables: {key:?}");
        }
        flows
    }

    /// Forgets all flows, for the next case.
    pub fn forget_flows(&mut self) {
        for table in [&mut self.tables.flows, &mut self.tables.unanswered] {
            let keys: Result<Vec<FlowKey>, _> = table.keys().collect();
            for key in keys.expect("a readable map") {
                table.remove(&key).expect("the flow is there");
            }
        }
    }

    /// Takes everything back that a case may have changed: flows, turns, and what the node knows.
    pub fn reset(&mut self) {
        self.forget_flows();
        topology::fill(&mut self.tables, self.site);
    }

    fn counters(&self) -> Vec<CounterRow> {
        read_counters(&self.tables).expect("readable counters")
    }
}

/// Requires the verdict, and the one counter that goes with the outcome.
#[track_caller]
pub fn assert_outcome(case: &str, program: Program, ran: &Ran, outcome: Outcome) {
    let counted = (
        program.name().to_owned(),
        outcome.name().to_owned(),
        1,
        ran.frame.len() as u64,
    );
    assert_eq!(ran.counted, [counted], "{case}: counters");
    assert_eq!(ran.verdict, outcome.verdict(program), "{case}: verdict");
}

/// Runs a program on a frame: its verdict, and the frame it leaves.
pub fn run(program: &SchedClassifier, frame: &[u8], context: Context) -> (i32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 256];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context.bytes()),
            ..TestRunOptions::default()
        })
        .expect("the kernel runs the program");
    out.truncate(result.data_size_out as usize);
    (result.return_value.cast_signed(), out)
}

/// The clock of the programs: units of 2^30 ns.
pub fn coarse_time() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("the kernel has this clock");
    ((now.tv_sec() * 1_000_000_000 + now.tv_nsec()) >> 30) as u32
}

fn difference(before: &[CounterRow], after: &[CounterRow]) -> Vec<Counted> {
    let counted = after.iter().map(|row| {
        let earlier = before
            .iter()
            .find(|earlier| (&earlier.hook, &earlier.name) == (&row.hook, &row.name));
        let (packets, bytes) = earlier.map_or((0, 0), |earlier| (earlier.packets, earlier.bytes));
        (
            row.hook.clone(),
            row.name.clone(),
            row.packets - packets,
            row.bytes - bytes,
        )
    });
    counted
        .filter(|(_, _, packets, bytes)| (*packets, *bytes) != (0, 0))
        .collect()
}
