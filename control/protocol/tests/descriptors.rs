//! The verdict on each kind of descriptor, with its reason.

use std::path::Path;

use protocol::descriptor::{AddressWish, Descriptor, Finding, ServiceDescriptor};
use serde_json::{Value, json};

/// What is expected of a document.
enum Verdict {
    /// Accepted; the names of the services, and the keys that are not acted on.
    Accepted(&'static [&'static str], &'static [&'static str]),
    /// Refused at this place, with a message that holds this text.
    Refused(&'static str, &'static str),
}
use Verdict::{Accepted, Refused};

const DOCUMENTS: [(&str, Verdict); 16] = [
    ("cli-blank-app-without-services", Accepted(&[], &[])),
    ("cli-default-app-with-services", Accepted(&["curl", "nginx"], &[])),
    ("cli-edge-gaming", Accepted(&["client", "proxy", "server"], &[])),
    // Volumes are kept and nothing is mounted.
    ("csi-hostpath-volume-app", Accepted(&["worker"], &["volumes"])),
    // A list of microservices alone is what the dashboard's form takes, not the interface.
    (
        "docs-0.4.301-dashboard-curl-nginx-microservices",
        Refused("sla_version", "list of microservices alone"),
    ),
    (
        "docs-0.4.301-get-started-client-server",
        Accepted(&["curl", "nginx"], &[]),
    ),
    // Any runtime may be named; whether a node has it is the scheduler's question.
    ("docs-gvisor-runsc-nginx", Accepted(&["nginx"], &[])),
    ("docs-nginx-client-server", Accepted(&["curlv4", "nginx"], &[])),
    ("docs-unikernel-nginx", Accepted(&["nginx"], &[])),
    ("repo-example-curl", Accepted(&["curl", "nginx"], &[])),
    // The user's own document.
    ("seed-client-server", Accepted(&["curl", "nginx"], &[])),
    ("seed-unikernel-nginx", Accepted(&["nginx"], &[])),
    // Correct by its schema, but its address is not one of the overlay.
    (
        "test-correct-1",
        Refused(
            "applications[0].microservices[0].addresses.rr_ip",
            "192.168.178.4",
        ),
    ),
    ("test-correct-2", Accepted(&["test"], &[])),
    // Has api_version instead.
    ("test-flawed-1", Refused("sla_version", "is missing")),
    (
        "test-flawed-2",
        Refused("applications[0].application_name", "\"Example Application\""),
    ),
];

fn document(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/descriptors/{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn services(descriptor: &Descriptor) -> impl Iterator<Item = &ServiceDescriptor> {
    descriptor
        .applications
        .iter()
        .flat_map(|application| &application.services)
}

#[test]
fn every_kind_of_descriptor_gets_its_verdict() {
    for (name, verdict) in &DOCUMENTS {
        match (Descriptor::read(&document(name)), verdict) {
            (Ok(descriptor), Accepted(names, ignored)) => {
                let found: Vec<&str> = services(&descriptor)
                    .map(|service| service.name.as_str())
                    .collect();
                assert_eq!(found, *names, "{name}");
                let warnings: Vec<&str> = services(&descriptor)
                    .flat_map(|service| &service.warnings)
                    .map(|warning| warning.path.rsplit('.').next().expect("path"))
                    .collect();
                assert_eq!(warnings, *ignored, "{name}");
            }
            (Err(finding), Refused(path, message)) => {
                assert_eq!(finding.path, *path, "{name}: {finding}");
                assert!(finding.message.contains(message), "{name}: {finding}");
            }
            (Ok(_), Refused(path, _)) => panic!("{name} is accepted, it has to be refused at {path}"),
            (Err(finding), Accepted(..)) => panic!("{name} is refused: {finding}"),
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/descriptors");
    let files = std::fs::read_dir(folder).expect("folder").count();
    assert_eq!(files, DOCUMENTS.len(), "every document stands in the table");
}

#[test]
fn the_users_own_document_is_read_as_it_is_meant() {
    let descriptor = Descriptor::read(&document("seed-client-server")).expect("descriptor");
    let [curl, nginx] = descriptor.applications[0].services.as_slice() else {
        panic!("two services");
    };
    assert_eq!(curl.cmd, ["sh", "-c", "curl 10.30.55.55 ; sleep 5"]);
    assert_eq!(
        (curl.virtualization.as_str(), curl.memory, curl.vcpus),
        ("docker", 100, 1)
    );
    assert_eq!(nginx.rr_ip.expect("address").to_string(), "10.30.55.55");
    assert_eq!(nginx.ports.to_string(), "80:80/tcp");
    let name = nginx.job_name("clientsrvr", "test").expect("name");
    assert_eq!(name.as_str(), "clientsrvr.test.nginx.test");
    assert_eq!(nginx.given["state"], "");
}

/// The user's document with one key of its second service replaced.
fn refused(key: &str, value: Value) -> Finding {
    let mut document = document("seed-client-server");
    document["applications"][0]["microservices"][1][key] = value;
    match Descriptor::read(&document) {
        Err(finding) => finding,
        Ok(_) => panic!("{key} is accepted"),
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let cases = [
        (
            "microserviceID",
            json!("65f0"),
            "microserviceID",
            "leave it empty",
        ),
        (
            "microservice_name",
            json!("nginx\n"),
            "microservice_name",
            "1 to 30",
        ),
        ("microservice_name", json!("a-b"), "microservice_name", "\"a-b\""),
        (
            "microservice_name",
            json!("a".repeat(31)),
            "microservice_name",
            "1 to 30",
        ),
        ("microservice_name", json!(""), "microservice_name", "1 to 30"),
        (
            "microservice_name",
            json!(4),
            "microservice_name",
            "is a number, a text belongs here",
        ),
        (
            "microservice_name",
            json!(null),
            "microservice_name",
            "is missing",
        ),
        (
            "microservice_name",
            json!("curl"),
            "microservice_name",
            "applications[0].microservices[0]",
        ),
        ("memory", json!(-1), "memory", "negative"),
        ("memory", json!(1.5), "memory", "whole number"),
        ("memory", json!("100"), "memory", "is a text"),
        ("memory", json!(1_u64 << 41), "memory", "more than"),
        ("vcpus", json!(-0.5), "vcpus", "negative"),
        ("port", json!("80:80:80"), "port", "host[:container]"),
        ("port", json!("80;80"), "port", "mapped twice"),
        ("port", json!(80), "port", "is a number, a text belongs here"),
        (
            "addresses",
            json!("10.30.1.1"),
            "addresses",
            "an object belongs here",
        ),
        (
            "addresses",
            json!({"rr_ip": "10.31.0.1"}),
            "addresses.rr_ip",
            "not in 10.30.0.0/16",
        ),
        (
            "addresses",
            json!({"rr_ip": "10.30.255.255"}),
            "addresses.rr_ip",
            "broadcast",
        ),
        (
            "addresses",
            json!({"rr_ip": "10.30.1"}),
            "addresses.rr_ip",
            "not an IPv4 address",
        ),
        (
            "addresses",
            json!({"rr_ip_v6": "fdff:3000::1"}),
            "addresses.rr_ip_v6",
            "not in fdff:2000::/21",
        ),
        (
            "addresses",
            json!({"closest_ip": "10.31.0.1"}),
            "addresses.closest_ip",
            "not in 10.30.0.0/16",
        ),
        (
            "addresses",
            json!({"closest_ip": "10.30.0.0"}),
            "addresses.closest_ip",
            "the network itself",
        ),
        (
            "addresses",
            json!({"closest_ip": "automatic"}),
            "addresses.closest_ip",
            "not an IPv4 address or \"auto\"",
        ),
        (
            "addresses",
            json!({"closest_ip": 7}),
            "addresses.closest_ip",
            "is a number",
        ),
        (
            "addresses",
            json!({"rr_ip": "10.30.1.1", "closest_ip": "10.30.1.1"}),
            "addresses.closest_ip",
            "is 10.30.1.1, as rr_ip is",
        ),
        ("environment", json!(["A=1", "B"]), "environment[1]", "KEY=value"),
        ("environment", json!(["=1"]), "environment[0]", "KEY=value"),
        ("environment", json!([1]), "environment[0]", "is a number"),
        ("cmd", json!("sh"), "cmd", "a list belongs here"),
        ("virtualization", json!("unikernel"), "arch", "is missing"),
        ("code", json!(""), "code", "is empty"),
        ("code", json!("a b"), "code", "no spaces"),
        ("constraints", json!([{}]), "constraints[0].type", "is missing"),
        (
            "constraints",
            json!([{"type": "direct", "node": 1}]),
            "constraints[0].node",
            "is a number",
        ),
        ("one_shot", json!("yes"), "one_shot", "true or false"),
        (
            "volumes",
            json!([{"volume_id": "v"}]),
            "volumes[0].csi_driver",
            "is missing",
        ),
        (
            "connectivity",
            json!([{"target_microservice_id": "1"}]),
            "connectivity[0].con_constraints",
            "is missing",
        ),
    ];
    for (key, value, path, message) in cases {
        let finding = refused(key, value.clone());
        assert_eq!(
            finding.path,
            format!("applications[0].microservices[1].{path}"),
            "{key} {value}: {finding}"
        );
        assert!(finding.message.contains(message), "{key} {value}: {finding}");
    }
}

#[test]
fn the_address_of_the_closest_instance_is_chosen_or_left_to_the_root() {
    let mut document = document("seed-client-server");
    for (given, expected) in [
        (json!("10.30.1.1"), Some(AddressWish::This([10, 30, 1, 1].into()))),
        (json!("auto"), Some(AddressWish::Any)),
        (json!(""), None),
        (json!(null), None),
    ] {
        document["applications"][0]["microservices"][1]["addresses"]["closest_ip"] = given.clone();
        let descriptor = Descriptor::read(&document).expect("descriptor");
        let service = &descriptor.applications[0].services[1];
        assert_eq!(service.closest_ip, expected, "{given}");
        assert!(service.warnings.is_empty(), "{given}");
    }
}

#[test]
fn what_is_not_acted_on_is_said() {
    let mut document = document("seed-client-server");
    let service = &mut document["applications"][0]["microservices"][1];
    service["bandwidth_in"] = json!(5);
    service["storage"] = json!(7.0);
    service["constraints"] =
        json!([{"type": "latency", "area": "munich"}, {"type": "clusters", "allowed": ["c"]}]);
    service["addresses"]["closest_ip_v6"] = json!("fdff:1000::1");
    service["future"] = json!({"kept": true});
    let descriptor = Descriptor::read(&document).expect("descriptor");
    let service = &descriptor.applications[0].services[1];
    let paths: Vec<&str> = service
        .warnings
        .iter()
        .map(|warning| {
            warning
                .path
                .trim_start_matches("applications[0].microservices[1].")
        })
        .collect();
    assert_eq!(
        paths,
        [
            "addresses.closest_ip_v6",
            "constraints[0].type",
            "bandwidth_in",
            "storage"
        ]
    );
    assert_eq!(service.constraints[1].allowed, ["c"]);
    assert_eq!(service.constraints[0].rest["area"], "munich");
    assert_eq!(service.given["future"]["kept"], true);
    assert_eq!(service.storage, 7);
}

#[test]
fn a_document_of_another_shape_is_refused() {
    let cases = [
        (json!([]), "", "an object belongs here"),
        (
            json!({"sla_version": "v1.0"}),
            "sla_version",
            "the only version is \"v2.0\"",
        ),
        (json!({"sla_version": 2}), "sla_version", "is a number"),
        (json!({"sla_version": "v2.0"}), "customerID", "is missing"),
        (
            json!({"sla_version": "v2.0", "customerID": "Admin"}),
            "applications",
            "is missing",
        ),
        (
            json!({"sla_version": "v2.0", "customerID": "Admin", "applications": [7]}),
            "applications[0]",
            "is a number",
        ),
    ];
    for (document, path, message) in cases {
        let finding = Descriptor::read(&document).expect_err("another shape");
        assert_eq!(finding.path, path, "{finding}");
        assert!(finding.message.contains(message), "{finding}");
    }
}
