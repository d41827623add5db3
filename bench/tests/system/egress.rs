//! Beside a Docker that closes the way through.

use anyhow::{Result, ensure};
use lab::system::{Plan, System};
use lab::{Docker, Lab, Namespace, images, wait_for};

use crate::stage::{PATIENCE, Stage, image_archive, programs};

#[test]
fn a_container_reaches_the_outside_past_dockers_forward_policy() -> Result<()> {
    let lab = Lab::new("egress")?;
    let outside = lab.host("outside")?;
    let worker = lab.host("worker-1")?;
    let docker = Docker::start_in(&worker, lab.directory())?;
    images::import_missing(docker.client(), &image_archive()?)?;
    let policy = worker.run("iptables", &["-S", "FORWARD"])?;
    ensure!(
        String::from_utf8_lossy(&policy.stdout).contains("-P FORWARD DROP"),
        "this Docker leaves the way open, so nothing is proved"
    );
    let plan = Plan {
        workers: vec![lab::system::Seat {
            name: "worker-1".to_owned(),
            namespace: Namespace::clone(&worker),
            address: worker.address(),
        }],
        ..Plan::in_lab(&lab, &programs()?, docker.client(), 0)?
    };
    let system = System::launch(plan)?;
    let mut stage = Stage { system, lab };
    stage.system.wait_until_ready()?;
    let application = stage.create()?;
    stage.run(&application.nginx)?;
    let container = stage.container("nginx")?;

    let web = stage.lab.directory().join("web");
    std::fs::create_dir(&web)?;
    std::fs::write(web.join("index.html"), "outside")?;
    let mut server = outside.command("busybox")?;
    server.args(["httpd", "-f", "-p", "8080", "-h"]).arg(&web);
    let _server = outside.daemon("web", server)?;
    let address = format!("http://{}:8080/", outside.address());
    wait_for("the container to reach the outside", PATIENCE, || {
        let output =
            stage
                .system
                .docker()
                .text(&["exec", &container, "curl", "-s", "--max-time", "2", &address])?;
        Ok(output == "outside")
    })?;
    drop(docker);
    Ok(())
}
