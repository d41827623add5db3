//! `status`: what runs, and how it fares.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lab::living;
use lab::system::Plan;
use lab::system::client::id_of;
use serde_json::{Value, json};

use crate::command::need_root;
use crate::standing::{DIRECTORY, MARK, Standing};
use crate::table::print_table;

/// Shows what `up` or `demo --keep` left running: daemons, nodes, services and their instances.
///
/// Fails when nothing runs, or not all of it.
#[derive(clap::Args)]
pub struct Options {
    /// How to print.
    #[arg(short, long, default_value = "table")]
    output: Format,
    /// Another folder than the usual one, as tests need it.
    #[arg(long, hide = true)]
    directory: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let Options { output, directory } = options;
    need_root("looking into namespaces")?;
    let directories = match directory {
        Some(directory) => vec![directory],
        None => {
            let mut all = vec![PathBuf::from(DIRECTORY)];
            all.extend(living(MARK)?.into_iter().map(|(directory, _owner)| directory));
            all
        }
    };
    let mut reports = Vec::new();
    for directory in &directories {
        reports.extend(Standing::load(directory)?.as_ref().map(report));
    }
    if output == Format::Json {
        println!("{:#}", Value::from(reports.clone()));
    } else if reports.is_empty() {
        println!("nothing runs: `cargo xtask up` starts the system");
    } else {
        reports.iter().for_each(print);
    }
    let healthy = !reports.is_empty() && reports.iter().all(|report| report["healthy"] == true);
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn report(standing: &Standing) -> Value {
    let Standing { plan, processes } = standing;
    let daemons: Vec<Value> = processes
        .iter()
        .map(|process| json!({"name": process.name, "pid": process.pid, "runs": process.runs()}))
        .collect();
    let (nodes, node_failure) = or_why(plan.nodes());
    let (services, service_failure) = or_why(services(plan));
    let obstacle = match plan.obstacle() {
        Ok(obstacle) => obstacle,
        Err(error) => Some(format!("{error:#}")),
    };
    json!({
        "healthy": standing.is_whole() && obstacle.is_none(),
        "obstacle": obstacle,
        "directory": plan.directory,
        "root": plan.client().base(),
        "docker": plan.docker.variable(),
        "daemons": daemons,
        "nodes": nodes,
        "nodesError": node_failure,
        "services": services,
        "servicesError": service_failure,
    })
}

fn or_why(outcome: Result<Vec<Value>>) -> (Vec<Value>, Option<String>) {
    match outcome {
        Ok(list) => (list, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    }
}

/// All services of all applications, as the root describes them.
fn services(plan: &Plan) -> Result<Vec<Value>> {
    let client = plan.client();
    let mut all = Vec::new();
    for application in client.applications()? {
        all.extend(client.services(&id_of(&application)?)?);
    }
    Ok(all)
}

fn print(report: &Value) {
    let rows = |list: &Value, cells: &dyn Fn(&Value) -> Vec<String>| -> Vec<Vec<String>> {
        list.as_array().into_iter().flatten().map(cells).collect()
    };
    println!(
        "{}, in {}",
        text(&report["root"]),
        Path::new(&text(&report["directory"])).display()
    );
    if let Some(obstacle) = report["obstacle"].as_str() {
        println!("not ready: {obstacle}");
    }
    println!();
    let daemons = rows(&report["daemons"], &|daemon| {
        let state = if daemon["runs"] == true {
            "runs"
        } else {
            "has ended"
        };
        vec![text(&daemon["name"]), text(&daemon["pid"]), state.to_owned()]
    });
    print_table(&["daemon", "process", "state"], &daemons);

    println!();
    let nodes = rows(&report["nodes"], &|node| {
        let state = if node["active"] == true { "active" } else { "lost" };
        vec![
            text(&node["host"]),
            text(&node["ip"]),
            state.to_owned(),
            text(&node["id"]),
        ]
    });
    print_list(
        "node",
        &["node", "address", "state", "id"],
        &nodes,
        &report["nodesError"],
    );

    println!();
    let mut instances = Vec::new();
    for service in report["services"].as_array().into_iter().flatten() {
        let name = text(&service["job_name"]);
        let list = service["instance_list"].as_array();
        if list.is_none_or(Vec::is_empty) {
            instances.push(vec![
                name.clone(),
                String::new(),
                "no instance".to_owned(),
                String::new(),
                String::new(),
            ]);
        }
        for instance in list.into_iter().flatten() {
            instances.push(vec![
                name.clone(),
                text(&instance["instance_number"]),
                text(&instance["status"]),
                text(&instance["host_ip"]),
                text(&instance["instance_ip"]),
            ]);
        }
    }
    let head = ["service", "instance", "status", "node", "address"];
    print_list("service", &head, &instances, &report["servicesError"]);
}

fn print_list(what: &str, head: &[&str], rows: &[Vec<String>], failure: &Value) {
    if let Some(failure) = failure.as_str() {
        println!("{what}s are not known: {failure}");
    } else if rows.is_empty() {
        println!("no {what}");
    } else {
        print_table(head, rows);
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => other.to_string(),
    }
}
