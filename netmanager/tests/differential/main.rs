//! F-81: the programs in the kernel and a plain model of them see the same frames, and do the same.
//!
//! The model (`model.rs`) shares nothing with the programs, not even constants; the kernel's side (`kernel.rs`) runs the
//! real object by `BPF_PROG_TEST_RUN`. Random nodes know all kinds of things, and each sees a sequence of frames, during
//! which what it knows changes. Verdict, name, exit, node and bytes are compared for every frame, flows and turns at the
//! end of every sequence.
//!
//! `OAKESTRA_CASES` asks for another number of frames than 100,000, `OAKESTRA_SEED` for other ones; a failure names the
//! seed that shows it.

mod generate;
mod kernel;
mod model;

use std::collections::BTreeMap;

use rand::SeedableRng as _;
use rand::prelude::*;

use crate::generate::Case;
use crate::kernel::{Kernel, Ran, Verdict};
use crate::model::{Exit, Hook, Node, Walked};

/// Frames that one node sees.
const SEQUENCE: u64 = 100;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn argument(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value.parse().unwrap_or_else(|error| panic!("{name}: {error}")),
        Err(_) => default,
    }
}

#[test]
fn f81_the_programs_do_what_the_model_says() {
    let cases = argument("OAKESTRA_CASES", 100_000);
    let seed = argument("OAKESTRA_SEED", 20_261_123);
    let mut kernel = Kernel::load();
    let mut seen: BTreeMap<(String, &str), u64> = BTreeMap::new();
    for sequence in 0..cases.div_ceil(SEQUENCE) {
        let seed = seed.wrapping_add(sequence);
        let mut random = StdRng::seed_from_u64(seed);
        let mut node = generate::node(&mut random);
        kernel.forget_flows();
        kernel.fill(&node);
        for step in 0..SEQUENCE {
            if random.random_bool(0.02) {
                generate::change(&mut random, &mut node);
                kernel.fill(&node);
            }
            let case = match random.random_range(0..10) {
                0..3 => generate::answer(&mut random, &node),
                3..5 => generate::more(&mut random, &node),
                5 => generate::piece(&mut random, &node),
                _ => None,
            };
            let case = case.unwrap_or_else(|| generate::case(&mut random));
            let told = format!(
                "OAKESTRA_SEED={seed}, frame {step}: {:?}, {}\n{node:?}",
                case.hook,
                hex(&case.frame)
            );
            let ran = kernel.run(&case.arrival());
            let walked = node.walk(&case.arrival());
            compare(&case, &walked, &ran).unwrap_or_else(|difference| panic!("{difference}\n{told}"));
            *seen.entry((format!("{:?}", case.hook), ran.name)).or_default() += 1;
        }
        compare_tables(&node, &kernel).unwrap_or_else(|difference| panic!("seed {seed}: {difference}"));
    }
    // The frames are close enough to real ones that nearly everything happens.
    if cases >= 100_000 {
        assert!(seen.len() > 80, "{seen:#?}");
    }
}

/// Whether the programs did what the model says.
fn compare(case: &Case, walked: &Walked, ran: &Ran) -> Result<(), String> {
    let differs = |what: &str| {
        Err(format!(
            "{what}: the model says {walked:?}, the programs did {ran:?}"
        ))
    };
    let sent = match walked {
        // What is not let up to NetManager is dropped: how many are, each CPU counts for itself.
        Ok(sent) if sent.name == "STRANGER" && ran.name == "UNKNOWN_PEER" => return Ok(()),
        Err(reason) if *reason == ran.name && ran.verdict == Verdict::Drop => return Ok(()),
        Err(_) => return differs("reason"),
        Ok(sent) => sent,
    };
    let verdict = match sent.exit {
        Exit::None => Verdict::Pass,
        Exit::Peer(_) | Exit::Out(_) | Exit::Neighbour(_) | Exit::Ingress(_) => Verdict::Redirect,
    };
    if ran.hook != hook_name(case.hook) {
        return differs("hook");
    }
    if (ran.name, ran.verdict) != (sent.name, verdict) {
        return differs("verdict");
    }
    if (ran.exit, ran.node) != (sent.exit, sent.node) {
        return differs("exit");
    }
    if ran.frame != sent.frame {
        return differs("bytes");
    }
    Ok(())
}

fn compare_tables(node: &Node, kernel: &Kernel) -> Result<(), String> {
    let expected: Vec<_> = node.flows.iter().map(|(key, flow)| (*key, *flow)).collect();
    let found = kernel.flows();
    if expected != found {
        return Err(format!(
            "flows: the model has {expected:#?}, the programs have {found:#?}"
        ));
    }
    let found = kernel.fragments();
    if node.fragments != found {
        return Err(format!(
            "fragments: the model has {:#?}, the programs have {found:#?}",
            node.fragments
        ));
    }
    for (address, service) in &node.services {
        let turn = kernel.turn(service.id);
        if turn != service.turn {
            return Err(format!(
                "turn of {address:?}: {} in the model, {turn}",
                service.turn
            ));
        }
    }
    Ok(())
}

const fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Endpoint => "from_endpoint",
        Hook::Oak0 => "from_oak0",
        Hook::Host => "from_host",
        Hook::Uplink => "from_uplink",
        Hook::Loopback => "from_loopback",
    }
}
