//! Calls as Docker makes them, from a namespace that stands for that of Docker's daemon: repeated, superseded, and cut
//! short by a crash.

use std::net::Ipv4Addr;
use std::time::Duration;

use lab::worker::{Instance, Worker};
use lab::{Endpoint, Namespace};
use netmanager::driver;
use netmanager::endpoint::Step;
use serde_json::{Value, json};

use crate::fixture::{DEADLINE, Site, assert_nothing_left, left, options_of, output};

/// Steps of a Join, in which a NetManager may be killed.
const STEPS: [Step; 9] = [
    Step::AllocateAddress,
    Step::CreateLink,
    Step::SetAlias,
    Step::DisableIpv6,
    Step::AttachProgram,
    Step::SetHostLinkUp,
    Step::AddHostRoute,
    Step::FillTables,
    Step::SaveState,
];

/// Steps of taking an endpoint off that can fail.
const LEAVE_STEPS: [Step; 4] = [
    Step::FillTables,
    Step::CreateLink,
    Step::AttachProgram,
    Step::SaveState,
];

/// A site, and the namespace from which it is called.
struct Stage {
    site: Site,
    docker: Endpoint,
}

impl Stage {
    fn new(label: &str) -> Self {
        let site = Site::new(label, "plugins");
        let docker = site.near.host().endpoint("docker").expect("an endpoint");
        Self { site, docker }
    }

    /// What the near worker answers; an error where it does not.
    fn try_call(&self, method: &str, body: &Value) -> anyhow::Result<Value> {
        self.call_to(&self.site.near, method, body)
    }

    fn call_to(&self, worker: &Worker, method: &str, body: &Value) -> anyhow::Result<Value> {
        let socket = driver::socket(&self.site.plugins, worker.node_id());
        let socket = socket.display().to_string();
        let arguments = [
            "-sS",
            "--max-time",
            "30",
            "--unix-socket",
            &socket,
            "-d",
            &body.to_string(),
        ];
        let url = format!("http://docker/{method}");
        let output = self.docker.run("curl", &[&arguments[..], &[&url]].concat())?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    #[track_caller]
    fn call(&self, method: &str, body: &Value) -> Value {
        let answer = self.try_call(method, body).expect("answered");
        assert_eq!(answer["Err"], Value::Null, "{method}");
        answer
    }

    /// The sentence with which a call is refused.
    #[track_caller]
    fn refused(&self, method: &str, body: &Value) -> String {
        let answer = self.try_call(method, body).expect("answered");
        answer["Err"].as_str().expect("refused").to_owned()
    }

    #[track_caller]
    fn create(&self, id: &str, instance: &Instance) -> Value {
        self.call("NetworkDriver.CreateEndpoint", &creation(id, instance))
    }

    /// Joins, and gives the name of the link that waits.
    #[track_caller]
    fn join(&self, id: &str) -> String {
        let joined = self.call("NetworkDriver.Join", &about(id));
        joined["InterfaceName"]["SrcName"]
            .as_str()
            .expect("a name")
            .to_owned()
    }

    /// Moves a link that waits into a container and sets it up, as Docker does.
    fn move_into(&self, container: &Namespace, waiting: &str, address: Ipv4Addr) {
        let name = container.name();
        self.docker
            .ip(&format!("link set {waiting} netns {name} name eth0"))
            .expect("moved");
        container
            .ip(&format!("address add {address}/32 dev eth0"))
            .expect("set");
        container.ip("link set eth0 up").expect("set up");
        container
            .ip("route add 169.254.1.1/32 dev eth0 scope link")
            .expect("routed");
        container.ip("route add default via 169.254.1.1").expect("routed");
    }

    /// Moves it back, as Docker does when nobody answers it.
    fn move_back(&self, container: &Namespace, waiting: &str) {
        container.ip("link set eth0 down").expect("set down");
        container
            .ip(&format!(
                "link set eth0 netns {} name {waiting}",
                self.docker.name()
            ))
            .expect("moved");
    }

    fn links(&self) -> String {
        output(&self.docker, &["-br", "link"])
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        assert_nothing_left(&self.site.near, || self.links());
    }
}

fn about(id: &str) -> Value {
    json!({"NetworkID": "network", "EndpointID": id})
}

fn creation(id: &str, instance: &Instance) -> Value {
    let options: serde_json::Map<String, Value> = options_of(instance)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::String(value)))
        .collect();
    json!({"NetworkID": "network", "EndpointID": id, "Interface": null, "Options": options})
}

#[test]
fn a_driver_introduces_itself() {
    let stage = Stage::new("introduction");
    let empty = json!({});
    assert_eq!(
        stage.call("Plugin.Activate", &empty),
        json!({"Implements": ["NetworkDriver"]})
    );
    assert_eq!(
        stage.call("NetworkDriver.GetCapabilities", &empty)["Scope"],
        "local"
    );
    for nothing in [
        "DeleteNetwork",
        "ProgramExternalConnectivity",
        "RevokeExternalConnectivity",
        "DiscoverNew",
    ] {
        assert_eq!(
            stage.call(&format!("NetworkDriver.{nothing}"), &about("e")),
            empty
        );
    }
    assert!(stage.refused("NetworkDriver.Fly", &empty).contains("Fly"));
    assert!(
        stage
            .refused("NetworkDriver.Join", &json!([]))
            .contains("cannot be read")
    );
    assert!(
        stage
            .refused("NetworkDriver.Join", &about("unknown"))
            .contains("not known")
    );
    // What is not there is left and deleted.
    stage.call("NetworkDriver.Leave", &about("unknown"));
    stage.call("NetworkDriver.DeleteEndpoint", &about("unknown"));
    stage.assert_nothing_left();
}

#[test]
fn calls_may_be_repeated() {
    let stage = Stage::new("repeated");
    let client = stage.site.client.clone();
    let container = stage.site.near.host().endpoint("client").expect("an endpoint");
    let first = stage.create("e1", &client);
    assert_eq!(first["Interface"]["Address"], "10.18.0.2/32");
    assert_eq!(stage.create("e1", &client), first);
    let waiting = stage.join("e1");
    let joined = left(&stage.site.near, &stage.links());
    assert_eq!(stage.join("e1"), waiting);
    assert_eq!(left(&stage.site.near, &stage.links()), joined);
    stage.move_into(&container, &waiting, client.namespace_address);
    let mac = output(&container, &["link", "show", "eth0"]);
    assert!(
        mac.contains(first["Interface"]["MacAddress"].as_str().expect("a MAC")),
        "{mac}"
    );
    assert!(mac.contains("mtu 1450"), "{mac}");
    container
        .ping(Ipv4Addr::new(10, 30, 0, 1), DEADLINE)
        .expect("the node answers");

    for _ in 0..2 {
        stage.call("NetworkDriver.Leave", &about("e1"));
        let noted = left(&stage.site.near, &stage.links());
        assert!(format!("{noted:?}").contains("e1"), "it may be joined again");
    }
    let waiting = stage.join("e1");
    stage.move_into(&container, &waiting, client.namespace_address);
    for _ in 0..2 {
        stage.call("NetworkDriver.DeleteEndpoint", &about("e1"));
    }
    assert!(stage.refused("NetworkDriver.Join", &about("e1")).contains("e1"));
    stage.assert_nothing_left();
}

#[test]
fn the_latest_endpoint_of_an_instance_counts() {
    let stage = Stage::new("superseded");
    let client = stage.site.client.clone();
    // One that is never joined.
    stage.create("e0", &client);
    stage.create("e1", &client);
    assert!(
        stage
            .refused("NetworkDriver.Join", &about("e0"))
            .contains("another container")
    );
    stage.join("e1");
    // Until the next is joined, what there is goes on.
    let next = stage.create("e2", &client);
    assert_eq!(next["Interface"]["Address"], "10.18.0.3/32");
    let attached =
        |stage: &Stage| stage.site.near.get("/endpoints").expect("listed")[0]["docker_endpoint"].clone();
    assert_eq!(attached(&stage), "e1");
    stage.join("e2");
    assert_eq!(attached(&stage), "e2");
    let before = left(&stage.site.near, &stage.links());
    for method in ["NetworkDriver.Leave", "NetworkDriver.DeleteEndpoint"] {
        stage.call(method, &about("e1"));
    }
    assert_eq!(left(&stage.site.near, &stage.links()), before);
    stage.call("NetworkDriver.DeleteEndpoint", &about("e2"));
    stage.assert_nothing_left();
    assert_eq!(
        stage.create("e3", &client)["Interface"]["Address"],
        "10.18.0.3/32",
        "as before"
    );
    let other = Instance {
        address: client.address,
        service: stage.site.server.service.clone(),
        ..client
    };
    stage.join("e3");
    let refused = stage.refused("NetworkDriver.CreateEndpoint", &creation("e4", &other));
    assert!(refused.contains("already"), "{refused}");
    stage.call("NetworkDriver.DeleteEndpoint", &about("e3"));
    stage.assert_nothing_left();
}

#[test]
fn a_step_of_joining_that_fails_leaves_the_endpoint_noted_and_nothing_else() {
    let mut stage = Stage::new("join fails");
    let client = stage.site.client.clone();
    for step in STEPS {
        stage
            .site
            .restart_near_with(&["--fail-attach-at", &step.to_string()]);
        stage.create("e", &client);
        let before = left(&stage.site.near, &stage.links());
        let refused = stage.refused("NetworkDriver.Join", &about("e"));
        assert!(refused.contains(&step.to_string()), "{refused}");
        assert_eq!(left(&stage.site.near, &stage.links()), before, "{step}");
        stage.call("NetworkDriver.DeleteEndpoint", &about("e"));
        stage.assert_nothing_left();
    }
}

#[test]
fn a_crash_at_any_step_is_made_good_when_docker_asks_again_or_gives_up() {
    let mut stage = Stage::new("join crashes");
    let client = stage.site.client.clone();
    for (number, step) in STEPS.into_iter().enumerate() {
        stage
            .site
            .restart_near_with(&["--crash-attach-at", &step.to_string()]);
        stage.create("e", &client);
        let noted = left(&stage.site.near, &stage.links());
        stage
            .try_call("NetworkDriver.Join", &about("e"))
            .expect_err("it crashes");
        stage.site.near.daemon().wait(DEADLINE).expect("it has crashed");
        stage.site.restart_near_with(&[]);
        assert_eq!(left(&stage.site.near, &stage.links()), noted, "{step}");
        if number % 2 == 0 {
            let waiting = stage.join("e");
            assert!(stage.links().contains(&waiting));
        }
        stage.call("NetworkDriver.DeleteEndpoint", &about("e"));
        stage.assert_nothing_left();
    }
    for step in LEAVE_STEPS {
        stage
            .site
            .restart_near_with(&["--crash-detach-at", &step.to_string()]);
        stage.create("e", &client);
        stage.join("e");
        stage
            .try_call("NetworkDriver.Leave", &about("e"))
            .expect_err("it crashes");
        stage.site.near.daemon().wait(DEADLINE).expect("it has crashed");
        stage.site.restart_near_with(&[]);
        stage.call("NetworkDriver.DeleteEndpoint", &about("e"));
        stage.assert_nothing_left();
    }
}

#[test]
fn a_link_that_has_come_back_is_taken_off_and_one_in_its_container_is_not() {
    let mut stage = Stage::new("come back");
    let client = stage.site.client.clone();
    let container = stage.site.near.host().endpoint("client").expect("an endpoint");
    stage.create("e", &client);
    let waiting = stage.join("e");
    stage.move_into(&container, &waiting, client.namespace_address);

    stage.site.near.restart().expect("started again");
    container
        .ping(Ipv4Addr::new(10, 30, 0, 1), DEADLINE)
        .expect("taken over");
    assert_eq!(
        stage.site.near.get("/endpoints").expect("listed")[0]["docker_endpoint"],
        "e"
    );

    // Docker ends the container while nobody answers: the link waits where it waited before.
    stage.site.near.daemon().kill().expect("killed");
    stage.move_back(&container, &waiting);
    stage.site.near.restart().expect("started again");
    lab::wait_for("the endpoint to be taken off", DEADLINE * 3, || {
        Ok(stage
            .site
            .near
            .get("/endpoints")?
            .as_array()
            .is_some_and(Vec::is_empty))
    })
    .expect("taken off");
    stage.assert_nothing_left();
}

#[test]
fn a_container_that_ends_without_a_word_is_taken_off() {
    let stage = Stage::new("without a word");
    let client = stage.site.client.clone();
    let container = stage.site.near.host().endpoint("client").expect("an endpoint");
    stage.create("e", &client);
    let waiting = stage.join("e");
    stage.move_into(&container, &waiting, client.namespace_address);
    container.remove().expect("ended");
    stage.assert_nothing_left();
    stage.call("NetworkDriver.Leave", &about("e"));
    stage.call("NetworkDriver.DeleteEndpoint", &about("e"));
}

#[test]
fn the_socket_comes_and_goes_with_the_node() {
    let mut stage = Stage::new("socket");
    let socket = driver::socket(&stage.site.plugins, stage.site.near.node_id());
    assert!(socket.exists());
    stage.site.near.daemon().kill().expect("killed");
    assert!(socket.exists(), "nobody was there to remove it");
    stage.site.near.restart().expect("started again");
    stage.call("Plugin.Activate", &json!({}));
    stage.site.near.daemon().terminate(DEADLINE).expect("ended");
    assert!(!socket.exists(), "removed at the end");
    stage.site.near.restart().expect("started again");
    assert!(socket.exists());
    stage.site.near.daemon().kill().expect("killed");
    let purged = stage.site.near.command_line(&["reset"]).expect("run");
    assert!(
        purged.status.success(),
        "{}",
        String::from_utf8_lossy(&purged.stderr)
    );
    assert!(!socket.exists(), "removed by the purge");
}

#[test]
fn what_a_dead_endpoint_holds_is_free_for_whoever_asks() {
    let mut stage = Stage::new("dead holder");
    let client = stage.site.client.clone();
    let published = |id: &str, instance: &Instance| {
        let mut creation = creation(id, instance);
        creation["Options"]["oakestra.port_mappings"] = json!("8080:80");
        creation
    };
    let create = "NetworkDriver.CreateEndpoint";
    stage.call(create, &published("e1", &client));
    // Its link waits and is never moved: what it looks like when it has come back from a container that was removed
    // while nobody answered Docker.
    stage.join("e1");
    // What looks for dead endpoints by itself has just looked when this is back.
    stage.site.near.restart().expect("started again");
    let other = Instance {
        number: 1,
        address: Ipv4Addr::new(10, 30, 1, 9),
        ..client
    };
    let refused = stage.refused(create, &published("e2", &other));
    assert!(
        refused.contains("port 8080/tcp"),
        "it may be moved yet: {refused}"
    );
    lab::wait_for("the port to be free", Duration::from_secs(15), || {
        let answer = stage.try_call(create, &published("e2", &other))?;
        Ok(answer["Err"].is_null())
    })
    .expect("before anybody looks");
    stage.join("e2");
    for id in ["e1", "e2"] {
        stage.call("NetworkDriver.DeleteEndpoint", &about(id));
    }
    stage.assert_nothing_left();
}
