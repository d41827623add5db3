//! What nobody should send stops nothing.

use anyhow::{Result, ensure};

use crate::stage::{Stage, descriptor};

const BODIES: [&str; 6] = ["", "{", "null", "[]", "{\"applications\": 7}", "\"\\ud800\""];

#[test]
fn malformed_requests_on_every_route_stop_nothing() -> Result<()> {
    let stage = Stage::set("malformed", 1)?;
    let client = stage.system.client();
    let token = client.login()?;
    let routes = [
        ("POST", "/api/auth/login"),
        ("POST", "/api/application/"),
        ("PUT", "/api/application/nonsense"),
        ("GET", "/api/application/nonsense"),
        ("DELETE", "/api/application/../../etc"),
        ("POST", "/api/service/"),
        ("GET", "/api/service/65f0a1b2c3d4e5f6a7b8c9d0"),
        ("POST", "/api/service/65f0a1b2c3d4e5f6a7b8c9d0/instance"),
        ("DELETE", "/api/service/x/instance/y"),
        ("GET", "/api/clusters/connect"),
        ("PATCH", "/api/applications"),
        ("GET", "/no/such/route"),
    ];
    for (method, path) in routes {
        for body in BODIES {
            let answer = client.send(method, path, Some(&token), Some(body))?;
            ensure!(
                (400..500).contains(&answer.code),
                "{method} {path} {body:?}: {} {}",
                answer.code,
                answer.body
            );
            let error = answer.json()?;
            ensure!(
                error["code"] == answer.code && error["message"].as_str().is_some_and(|text| text.len() > 8),
                "{method} {path} {body:?}: {error}"
            );
        }
    }
    // Nothing of it stayed, and everything works.
    ensure!(client.applications()?.is_empty(), "an application came of it");
    let flawed = {
        let mut flawed = descriptor();
        flawed["applications"][0]["microservices"][1]["port"] = serde_json::json!("80:http");
        flawed
    };
    let refused = client
        .attempt("POST", "/api/application/", Some(&flawed))?
        .json()?;
    ensure!(
        refused["path"] == "applications[0].microservices[1].port",
        "the error does not say where: {refused}"
    );
    let application = stage.create()?;
    stage.run(&application.nginx)?;
    Ok(())
}
