//! Daemons die at any moment, and what runs goes on.

use anyhow::{Context as _, Result, ensure};
use lab::system::System;
use lab::{Daemon, Namespace, wait_for};

use crate::stage::{PATIENCE, SERVICE_ADDRESS, Stage};

/// A daemon of the system, by what it does.
type Chosen = fn(&mut System, usize) -> &mut Daemon;

const DAEMONS: [(&str, Chosen); 4] = [
    ("root", |system, _| system.root()),
    ("cluster", |system, _| system.cluster()),
    ("NetManager", |system, worker| {
        system.workers_mut()[worker].netmanager()
    }),
    ("NodeEngine", |system, worker| {
        system.workers_mut()[worker].engine()
    }),
];

/// When and how often a container was started.
fn life(stage: &Stage, container: &str) -> Result<String> {
    stage.system.docker().text(&[
        "inspect",
        "--format",
        "{{.State.StartedAt}} {{.RestartCount}} {{.State.Pid}}",
        container,
    ])
}

fn serves(stage: &Stage, from: &Namespace, what: &str) -> Result<()> {
    let address = format!("http://{SERVICE_ADDRESS}");
    wait_for(what, PATIENCE, || {
        Ok(stage.fetch(from, &address)? == "still-there")
    })
}

#[test]
fn each_daemon_is_killed_and_started_again_with_the_application_still_there() -> Result<()> {
    let mut stage = Stage::set("kills", 2)?;
    let application = stage.create()?;
    let server = stage.run(&application.nginx)?;
    stage.put_page("still-there")?;
    let plan = stage.system.plan().clone();
    let here = plan
        .workers
        .iter()
        .position(|seat| seat.address.to_string() == server.host_ip)
        .context("the server is on no worker")?;
    let client = plan.workers[1 - here].namespace.clone();
    let container = stage.container("nginx")?;
    let born = life(&stage, &container)?;
    serves(&stage, &client, "the service before anything dies")?;

    let each = DAEMONS.iter().map(|daemon| vec![*daemon]);
    let all_of_one_node = vec![DAEMONS[2], DAEMONS[3]];
    let everything = DAEMONS.to_vec();
    for victims in each.chain([all_of_one_node, everything]) {
        let names: Vec<&str> = victims.iter().map(|(name, _)| *name).collect();
        let names = names.join(" and ");
        for (_, daemon) in &victims {
            daemon(&mut stage.system, here).kill()?;
        }
        serves(&stage, &client, &format!("the service while {names} is dead"))?;
        for (_, daemon) in &victims {
            daemon(&mut stage.system, here).restart()?;
        }
        stage
            .system
            .wait_until_ready()
            .with_context(|| format!("after {names}"))?;
        let report = stage
            .system
            .client()
            .wait_for_status(&application.nginx, &["RUNNING"], PATIENCE)
            .with_context(|| format!("after {names}"))?;
        ensure!(
            report.worker_id == server.worker_id,
            "moved after {names}: {report:?}"
        );
        serves(&stage, &client, &format!("the service after {names} came back"))?;
        ensure!(
            life(&stage, &container)? == born,
            "the container is another one after {names}"
        );
    }
    // And it still obeys.
    stage.system.client().delete_application(&application.id)?;
    stage.wait_until_bare()
}

#[test]
fn what_is_ordered_while_a_daemon_is_dead_is_carried_out_when_it_is_back() -> Result<()> {
    let mut stage = Stage::set("orders", 1)?;
    let application = stage.create()?;
    for (name, daemon) in DAEMONS.iter().skip(1) {
        daemon(&mut stage.system, 0).kill()?;
        stage.system.client().deploy(&application.nginx)?;
        daemon(&mut stage.system, 0).restart()?;
        stage
            .system
            .client()
            .wait_for_status(&application.nginx, &["RUNNING"], PATIENCE)
            .with_context(|| format!("ordered while {name} was dead"))?;
        daemon(&mut stage.system, 0).kill()?;
        let instances = stage.system.client().instances(&application.nginx)?;
        for instance in instances {
            stage
                .system
                .client()
                .undeploy(&application.nginx, instance.number)?;
        }
        daemon(&mut stage.system, 0).restart()?;
        stage
            .wait_until_bare()
            .with_context(|| format!("taken away while {name} was dead"))?;
    }
    Ok(())
}
