//! What is taken away leaves nothing.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lab::wait_for;

use crate::stage::{PATIENCE, Stage, another};

const ROUNDS: usize = 50;

#[test]
fn rounds_of_deploying_and_undeploying_leave_nothing() -> Result<()> {
    let stage = Stage::set("rounds", 2)?;
    let client = stage.system.client();
    let application = stage.create()?;
    let mut numbers = BTreeSet::new();
    for _ in 0..ROUNDS {
        let instance = stage.run(&application.nginx)?;
        ensure!(
            numbers.insert(instance.number),
            "number {} again",
            instance.number
        );
        client.undeploy(&application.nginx, instance.number)?;
        // The port is free again only when the instance is gone.
        wait_for("the instance to be gone", PATIENCE, || {
            Ok(client.instances(&application.nginx)?.is_empty())
        })?;
    }
    stage.wait_until_bare()?;

    // The service stays until it is deleted, and its address with it.
    let mut twin = another("twin", "81:80");
    twin["applications"][0]["microservices"][0]["addresses"] = serde_json::json!({"rr_ip": "10.30.55.55"});
    let refused = client.attempt("POST", "/api/application/", Some(&twin))?;
    ensure!(refused.code == 409, "{} {}", refused.code, refused.body);
    client.delete_application(&application.id)?;
    wait_for("the address to be free", PATIENCE, || {
        Ok(client.attempt("POST", "/api/application/", Some(&twin))?.code == 200)
    })?;
    Ok(())
}

#[test]
fn an_application_is_deleted_with_all_that_runs() -> Result<()> {
    let stage = Stage::set("delete", 2)?;
    let client = stage.system.client();
    let application = stage.create()?;
    let nginx = stage.run(&application.nginx)?;
    stage.run(&application.curl)?;
    // One host port, two nodes: the second instance goes to the other node, a third waits.
    let second = stage.run(&application.nginx)?;
    ensure!(second.host_ip != nginx.host_ip, "{second:?} beside {nginx:?}");
    client.deploy(&application.nginx)?;
    let waiting = client.wait_for_status(
        &application.nginx,
        &["NoActiveClusterWithCapacity", "NO_WORKER_CAPACITY"],
        PATIENCE,
    )?;
    ensure!(
        waiting.status_detail.contains("80"),
        "no word of the port: {waiting:?}"
    );
    // It gets its place as soon as there is one.
    client.undeploy(&application.nginx, nginx.number)?;
    wait_for("the third to run", PATIENCE, || {
        let instances = client.instances(&application.nginx)?;
        Ok(instances
            .iter()
            .any(|instance| instance.number == waiting.number && instance.status == "RUNNING"))
    })?;
    client.delete_application(&application.id)?;
    ensure!(
        client.applications()?.is_empty(),
        "the application is still listed"
    );
    stage.wait_until_bare()
}
