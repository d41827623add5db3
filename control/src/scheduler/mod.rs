//! Where a placement goes: the same code at both tiers, over [`Capacity`] at the root and nodes in a cluster.
//!
//! A [`Scheduler`] has two parts: [`filter`](Scheduler::filter) says for each constraint why a candidate is not
//! possible, [`score`](Scheduler::score) says which of the possible ones is best. [`choose`] applies both.

mod candidate;
mod refusal;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use protocol::job::Job;

pub use candidate::{Candidate, HostPort, Tier, host_ports};
pub use refusal::{Nowhere, Refusal};

/// How good a candidate is; the greater the better.
pub type Score = u64;

/// Decides where something goes.
pub trait Scheduler: Send + Sync {
    /// Every reason why `candidate` cannot take `job`; none when it can.
    fn filter(&self, job: &Job, candidate: &Candidate) -> Vec<Refusal>;

    /// How well `candidate`, which can take `job`, suits it.
    fn score(&self, job: &Job, candidate: &Candidate) -> Score;
}

/// Goes where the largest share of CPU and memory stays unreserved.
#[derive(Clone, Copy, Debug, Default)]
pub struct MostUnreserved;

/// The candidate with the best score, of those the one with the fewest instances, of those the first by id; or why
/// each cannot be it.
pub fn choose<'a>(
    scheduler: &dyn Scheduler,
    job: &Job,
    candidates: &'a [Candidate],
) -> Result<&'a Candidate, Nowhere> {
    let mut refusals = Vec::new();
    let mut possible = Vec::new();
    for candidate in candidates {
        let reasons = scheduler.filter(job, candidate);
        if reasons.is_empty() {
            possible.push(candidate);
        } else {
            refusals.push((candidate.name.clone(), reasons));
        }
    }
    possible
        .into_iter()
        .min_by_key(|candidate| {
            let score = scheduler.score(job, candidate);
            (Reverse(score), candidate.instances, candidate.id.as_str())
        })
        .ok_or(Nowhere { refusals })
}

impl Scheduler for MostUnreserved {
    fn filter(&self, job: &Job, candidate: &Candidate) -> Vec<Refusal> {
        if !candidate.active {
            return vec![Refusal::Inactive];
        }
        let mut refusals = Vec::new();
        direct(job, candidate, &mut refusals);
        qualities(job, candidate, &mut refusals);
        room(job, candidate, &mut refusals);
        refusals
    }

    /// Parts per thousand, mean of CPU and memory.
    fn score(&self, job: &Job, candidate: &Candidate) -> Score {
        let share = |free: u64, wanted: u64, all: u64| {
            (u128::from(free.saturating_sub(wanted)) * 1000)
                .checked_div(u128::from(all))
                .unwrap_or(0)
        };
        let cpu = share(candidate.vcpus_free, job.vcpus, candidate.vcpus);
        let memory = share(candidate.memory_free, job.memory, candidate.memory);
        u64::try_from(u128::midpoint(cpu, memory)).unwrap_or(u64::MAX)
    }
}

/// Where the descriptor wants to be. Several constraints of a kind are all to be met; constraints of other kinds are
/// accepted and not acted on.
fn direct(job: &Job, candidate: &Candidate, refusals: &mut Vec<Refusal>) {
    for constraint in &job.constraints {
        match constraint.kind.as_str() {
            "direct" => {
                if !constraint.cluster.is_empty() && constraint.cluster != candidate.cluster {
                    refusals.push(Refusal::OtherCluster {
                        wanted: constraint.cluster.clone(),
                    });
                }
                let mut wanted = hosts(&constraint.node).peekable();
                if wanted.peek().is_some()
                    && !wanted.any(|host| candidate.hosts.iter().any(|known| known == host))
                {
                    refusals.push(Refusal::OtherHost {
                        wanted: constraint.node.clone(),
                    });
                }
            }
            "clusters" if !constraint.allowed.contains(&candidate.cluster) => {
                refusals.push(Refusal::ClusterNotAllowed {
                    allowed: constraint.allowed.clone(),
                });
            }
            _ => {}
        }
    }
}

fn hosts(list: &str) -> impl Iterator<Item = &str> {
    list.split(';').map(str::trim).filter(|host| !host.is_empty())
}

/// What a candidate is or is not, however much room it has.
fn qualities(job: &Job, candidate: &Candidate, refusals: &mut Vec<Refusal>) {
    let has = |list: &[String], wanted: &str| list.iter().any(|item| item.eq_ignore_ascii_case(wanted));
    // Everybody writes containers either way.
    let is_container = |name: &str| {
        ["docker", "container"]
            .iter()
            .any(|word| name.eq_ignore_ascii_case(word))
    };
    let runtime = &job.virtualization;
    let runs = has(&candidate.virtualization, runtime)
        || (is_container(runtime) && candidate.virtualization.iter().any(|name| is_container(name)));
    if !runtime.is_empty() && !runs {
        refusals.push(Refusal::Virtualization {
            wanted: runtime.clone(),
            available: candidate.virtualization.clone(),
        });
    }
    let wanted: Vec<String> = match job.rest.get("arch") {
        Some(serde_json::Value::Array(list)) => list
            .iter()
            .filter_map(|item| item.as_str())
            .map(str::to_owned)
            .collect(),
        Some(serde_json::Value::String(one)) if !one.is_empty() => vec![one.clone()],
        Some(_) | None => Vec::new(),
    };
    if !wanted.is_empty() && !wanted.iter().any(|one| has(&candidate.architectures, one)) {
        refusals.push(Refusal::Architecture {
            wanted,
            available: candidate.architectures.clone(),
        });
    }
    if job.vcpus > candidate.largest_vcpus_ever {
        refusals.push(Refusal::TooFewVcpus {
            wanted: job.vcpus,
            there_are: candidate.largest_vcpus_ever,
        });
    }
    if job.memory > candidate.largest_memory_ever {
        refusals.push(Refusal::TooLittleMemory {
            wanted: job.memory,
            there_are: candidate.largest_memory_ever,
        });
    }
    if job.vgpus > candidate.vgpus {
        refusals.push(Refusal::Vgpus {
            wanted: job.vgpus,
            there_are: candidate.vgpus,
        });
    }
}

/// What others have reserved.
fn room(job: &Job, candidate: &Candidate, refusals: &mut Vec<Refusal>) {
    let tier = candidate.tier;
    if job.vcpus > candidate.largest_vcpus && job.vcpus <= candidate.largest_vcpus_ever {
        refusals.push(Refusal::Vcpus {
            wanted: job.vcpus,
            free: candidate.largest_vcpus,
            tier,
        });
    }
    if job.memory > candidate.largest_memory && job.memory <= candidate.largest_memory_ever {
        refusals.push(Refusal::Memory {
            wanted: job.memory,
            free: candidate.largest_memory,
            tier,
        });
    }
    if job.vgpus > candidate.vgpus_free && job.vgpus <= candidate.vgpus {
        refusals.push(Refusal::VgpusTaken {
            wanted: job.vgpus,
            free: candidate.vgpus_free,
        });
    }
    for port in host_ports(&job.port) {
        if candidate.ports_taken.contains(&port) {
            refusals.push(Refusal::Port { port });
        }
    }
}
