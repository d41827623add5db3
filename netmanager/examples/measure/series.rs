//! What is measured: which packets, at which node, by which program.

use anyhow::{Context as _, Result, ensure};
use netmanager::dataplane::Program;
use serde::Serialize;

use crate::frame::{ACK, PSH};
use crate::kernel::Runner;
use crate::node::{
    Node, REDIRECT, answered, answered_to_outside, asked_from_outside, elsewhere, from_elsewhere, opening,
    sent, sent_to_neighbour,
};

/// Flows and services of a node that has few of them.
const FEW: u32 = 10;
const MANY_FLOWS: u32 = 100_000;
const MANY_SERVICES: u32 = 10_000;
/// What a program returns for a packet that goes on as it is.
const PASS: i32 = -1;
/// The verdict of the look-up when it found something, and of the program that does nothing.
const FOUND: i32 = 1;
const NOTHING: i32 = -1;
/// Of the packets of a round, this share is left out: the slowest, which something else has interrupted.
const INTERRUPTED: usize = 50;

/// The figures of one kind of packet.
#[derive(Serialize)]
pub struct Series {
    /// What the packets are.
    pub path: &'static str,
    /// The program that they are given to; none for what it is compared with.
    pub program: Option<&'static str>,
    /// Flows in the node's table.
    pub flows: u32,
    /// How many of them the packets belong to, in turn.
    pub cycled: u32,
    /// Services in front of two instances that the node knows.
    pub services: u32,
    /// How many of them the packets go to, in turn.
    pub asked: u32,
    /// Nanoseconds per packet, in each round, the clock and the call included.
    pub nanoseconds: Vec<f64>,
}

/// One kind of packet, ready to be run.
struct Case {
    series: Series,
    /// Position of the node.
    node: usize,
    runner: Runner,
    frames: Vec<Vec<u8>>,
    verdict: i32,
    /// Begins flows, which are forgotten afterwards.
    opens: bool,
}

/// What a case says of itself.
struct Kind {
    path: &'static str,
    program: Option<Program>,
    frame: fn(u32, u32) -> Result<Vec<u8>>,
    verdict: i32,
    opens: bool,
}

impl Kind {
    /// A kind of packet of which a node has some flows only, or none.
    fn is_of_few(&self) -> bool {
        !matches!(self.path, LOOK_UP | OUT | IN)
    }
}

const LOOK_UP: &str = "look_up";
const OUT: &str = "tunnel";
const IN: &str = "deliver";
const NEW: &str = "new_flow";

const KINDS: [Kind; 10] = [
    Kind {
        path: "nothing",
        program: None,
        frame: |flow, _| sent(flow, ACK | PSH),
        verdict: NOTHING,
        opens: false,
    },
    Kind {
        path: LOOK_UP,
        program: None,
        frame: |flow, _| sent(flow, ACK | PSH),
        verdict: FOUND,
        opens: false,
    },
    Kind {
        path: OUT,
        program: Some(Program::FromEndpoint),
        frame: |flow, _| sent(flow, ACK | PSH),
        verdict: REDIRECT,
        opens: false,
    },
    Kind {
        path: IN,
        program: Some(Program::FromUplink),
        frame: |flow, _| answered(flow, ACK | PSH),
        verdict: REDIRECT,
        opens: false,
    },
    Kind {
        path: "same_node",
        program: Some(Program::FromEndpoint),
        frame: |flow, _| sent_to_neighbour(flow, ACK | PSH),
        verdict: REDIRECT,
        opens: false,
    },
    Kind {
        path: "published",
        program: Some(Program::FromUplink),
        frame: |flow, _| asked_from_outside(flow, ACK | PSH),
        verdict: REDIRECT,
        opens: false,
    },
    Kind {
        path: "published_answer",
        program: Some(Program::FromEndpoint),
        frame: |flow, _| answered_to_outside(flow, ACK | PSH),
        verdict: REDIRECT,
        opens: false,
    },
    Kind {
        path: "not_ours_out",
        program: Some(Program::FromEndpoint),
        frame: |flow, _| elsewhere(flow),
        verdict: PASS,
        opens: false,
    },
    Kind {
        path: "not_ours_in",
        program: Some(Program::FromUplink),
        frame: |flow, _| from_elsewhere(flow),
        verdict: PASS,
        opens: false,
    },
    Kind {
        path: NEW,
        program: Some(Program::FromEndpoint),
        frame: opening,
        verdict: REDIRECT,
        opens: true,
    },
];

/// Measures everything, round by round.
///
/// # Errors
/// When the kernel refuses, or a packet does not go where it is to go.
pub fn measure(rounds: u32, packets: u32) -> Result<Vec<Series>> {
    let mut nodes = [
        Node::with(FEW, FEW)?,
        Node::with(MANY_FLOWS, FEW)?,
        Node::with(FEW, MANY_SERVICES)?,
    ];
    let mut cases = Vec::new();
    for kind in &KINDS {
        for (position, node) in nodes.iter_mut().enumerate() {
            // Only what is fast on a node with few of everything is looked at beside it.
            if position == 0 || (position == 1 && !kind.is_of_few()) {
                cases.push(case(kind, position, node, node_flows(kind, node), FEW, packets)?);
            } else if position == 2 && matches!(kind.path, OUT | NEW) {
                cases.push(case(kind, position, node, FEW, FEW, packets)?);
                if kind.opens {
                    cases.push(case(kind, position, node, FEW, MANY_SERVICES, packets)?);
                }
            }
        }
    }
    let packets = usize::try_from(packets)?;
    for round in 0..usize::try_from(rounds)? {
        // Another first one each time, so that none always comes after the same.
        let first = round * 7 % cases.len();
        cases.rotate_left(first);
        for case in &mut cases {
            let time = run(case, round, packets)?;
            case.series.nanoseconds.push(time);
            if case.opens {
                nodes.get_mut(case.node).context("a node")?.forget_unanswered()?;
            }
        }
        cases.rotate_right(first);
    }
    Ok(cases.into_iter().map(|case| case.series).collect())
}

fn node_flows(kind: &Kind, node: &Node) -> u32 {
    if kind.is_of_few() { FEW } else { node.flows }
}

fn case(
    kind: &Kind,
    position: usize,
    node: &mut Node,
    cycled: u32,
    asked: u32,
    packets: u32,
) -> Result<Case> {
    let runner = match (kind.program, kind.path) {
        (Some(program), _) => node.runner(program)?,
        (None, LOOK_UP) => node.look_up()?,
        (None, _) => Runner::nothing()?,
    };
    // Each new flow has a port of its own.
    let different = if kind.opens { packets } else { cycled };
    let frames = (0..different)
        .map(|number| (kind.frame)(number, number % asked))
        .collect::<Result<_>>()?;
    Ok(Case {
        series: Series {
            path: kind.path,
            program: kind.program.map(Program::name),
            flows: node.flows,
            cycled,
            services: node.services,
            asked,
            nanoseconds: Vec::new(),
        },
        node: position,
        runner,
        frames,
        verdict: kind.verdict,
        opens: kind.opens,
    })
}

/// Nanoseconds per packet of one round: the mean of all but the slowest.
fn run(case: &Case, round: usize, packets: usize) -> Result<f64> {
    let Case {
        series,
        runner,
        frames,
        verdict,
        ..
    } = case;
    // Where the flows are more than the packets of a round, the next round goes on with the others.
    let begin = if case.opens { 0 } else { round * packets };
    let warm = frames.iter().cycle().skip(begin % frames.len());
    let mut times = Vec::with_capacity(packets);
    for frame in warm.take(packets) {
        let ran = runner.run(frame)?;
        ensure!(
            ran.verdict == *verdict,
            "{}: verdict {} instead of {verdict}",
            series.path,
            ran.verdict
        );
        times.push(ran.nanoseconds);
    }
    times.sort_unstable();
    times.truncate(packets - packets / INTERRUPTED);
    let sum: u64 = times.iter().copied().map(u64::from).sum();
    Ok(sum as f64 / times.len() as f64)
}
