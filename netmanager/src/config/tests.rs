use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// The files that nodes carry, as they are shipped.
const SHIPPED_NETWORK: &str = r#"{
    "NodePublicAddress": "0.0.0.0", "NodePublicPort": "50103", "ClusterUrl": "0.0.0.0",
    "ClusterMqttPort": "10003", "DefaultInterface": "", "Debug": false, "PublicIPNetworking": false,
    "MqttCert": "", "MqttKey": ""
}"#;
const SHIPPED_TUNNEL: &str = r#"{
    "HostTunnelDeviceName": "goProxyTun", "TunnelIP": "10.19.1.254", "ProxySubnetwork": "10.30.0.0",
    "ProxySubnetworkMask": "255.255.0.0", "TunnelPort": 50103, "MTUsize": 1450,
    "TunNetIPv6": "fcef::dead:beef", "ProxySubnetworkIPv6": "fcef::", "ProxySubnetworkIPv6Prefix": 21
}"#;

#[test]
fn paths_lie_below_the_root() {
    let paths = Paths::new(Path::new("/"));
    assert_eq!(paths.network_file, Path::new("/etc/netmanager/netcfg.json"));
    assert_eq!(paths.tunnel_file, Path::new("/etc/netmanager/tuncfg.json"));
    assert_eq!(paths.socket, Path::new("/etc/netmanager/netmanager.sock"));
    assert_eq!(paths.state, Path::new("/var/lib/oakestra/netmanager"));
    let other = Paths::new(Path::new("/tmp/worker-1"));
    assert_eq!(
        other.socket,
        Path::new("/tmp/worker-1/etc/netmanager/netmanager.sock")
    );
}

#[test]
fn missing_files_and_the_shipped_ones_mean_the_same() {
    let defaults = Config {
        announced_address: None,
        announced_port: 50103,
        listen_port: 50103,
        cluster_host: None,
        cluster_port: 10003,
        default_interface: None,
        mtu: 1450,
        debug: false,
        public_ip_networking: false,
        probes: Settings::default(),
        mqtt_certificate: None,
        mqtt_key: None,
        mqtt_ca: None,
        lifetimes: Lifetimes::default(),
        sweep_every: Duration::from_secs(10),
        interest: Duration::from_secs(600),
    };
    assert_eq!(read(None, None).expect("missing"), defaults);
    assert_eq!(
        read(Some(SHIPPED_NETWORK), Some(SHIPPED_TUNNEL)).expect("shipped"),
        defaults
    );
    assert_eq!(read(Some("{}"), Some("{}")).expect("empty"), defaults);
}

#[test]
fn every_key_is_heard_and_unknown_ones_do_no_harm() {
    let network = r#"{
        "NodePublicAddress": "203.0.113.7", "NodePublicPort": "40000", "ClusterUrl": "cluster.example",
        "ClusterMqttPort": 10004, "DefaultInterface": "eth1", "Debug": true, "PublicIPNetworking": true,
        "MqttCert": "/c.pem", "MqttKey": "/k.pem", "MqttCa": "/ca.pem", "Experimental": ["ebpf"],
        "FlowSweepSeconds": 0.5, "InterestSeconds": "90", "FlowLifetimes": {
            "TcpOpening": 1, "TcpEstablished": "2", "TcpClosed": 3.5, "tcpReset": 4, "UdpOneWay": 5, "UdpAnswered": 6,
            "Icmp": 7
        },
        "ProbeInterval": "500", "ProbeIntervalMetered": 60000, "MeteredInterfaces": "wwan0, ppp0",
        "ProbeSilence": 3000, "ProbesPerSecond": 50, "ProbesAnsweredPerSecond": 100
    }"#;
    let tunnel = r#"{"TunnelPort": "50104", "mtuSize": "9000", "Comment": {"by": "a person"}}"#;
    let config = read(Some(network), Some(tunnel)).expect("all keys");
    let expected = Config {
        announced_address: Some(Ipv4Addr::new(203, 0, 113, 7)),
        announced_port: 40000,
        listen_port: 50104,
        cluster_host: Some("cluster.example".to_owned()),
        cluster_port: 10004,
        default_interface: Some("eth1".to_owned()),
        mtu: 9000,
        debug: true,
        public_ip_networking: true,
        probes: Settings {
            interval: Duration::from_millis(500),
            metered_interval: Duration::from_secs(60),
            metered_interfaces: vec!["wwan0".to_owned(), "ppp0".to_owned()],
            silent_after: Duration::from_secs(3),
            per_second: 50,
            answered_per_second: 100,
        },
        mqtt_certificate: Some("/c.pem".into()),
        mqtt_key: Some("/k.pem".into()),
        mqtt_ca: Some("/ca.pem".into()),
        lifetimes: Lifetimes {
            tcp_opening: Duration::from_secs(1),
            tcp_established: Duration::from_secs(2),
            tcp_closed: Duration::from_millis(3_500),
            tcp_reset: Duration::from_secs(4),
            udp_one_way: Duration::from_secs(5),
            udp_answered: Duration::from_secs(6),
            icmp: Duration::from_secs(7),
        },
        sweep_every: Duration::from_millis(500),
        interest: Duration::from_secs(90),
    };
    assert_eq!(config, expected);
}

#[test]
fn what_is_wrong_is_reported_with_file_key_and_value() {
    let network = [
        (
            r#"{"NodePublicPort": "x"}"#,
            r#"NodePublicPort = "x": a number from 1 to 65535 is needed"#,
        ),
        (
            r#"{"NodePublicPort": 0}"#,
            "NodePublicPort = 0: a number from 1 to 65535",
        ),
        (
            r#"{"ClusterMqttPort": "65536"}"#,
            r#"ClusterMqttPort = "65536": a number"#,
        ),
        (
            r#"{"NodePublicAddress": "10.300.0.1"}"#,
            r#"NodePublicAddress = "10.300.0.1": invalid IPv4"#,
        ),
        (
            r#"{"NodePublicAddress": "2001:db8::1"}"#,
            "tunnels between nodes are IPv4 only",
        ),
        (
            r#"{"NodePublicAddress": "10.18.0.1"}"#,
            "10.16.0.0/12 is the overlay itself",
        ),
        (r#"{"NodePublicAddress": "224.0.0.1"}"#, "the address of one node"),
        (
            r#"{"NodePublicAddress": 7}"#,
            "NodePublicAddress = 7: a text is needed",
        ),
        (
            r#"{"ClusterUrl": "tcp://cluster:1883"}"#,
            r#"ClusterUrl = "tcp://cluster:1883": a host name"#,
        ),
        (
            r#"{"DefaultInterface": "an interface"}"#,
            r#"DefaultInterface = "an interface""#,
        ),
        (
            r#"{"Debug": "yes"}"#,
            r#"Debug = "yes": true or false is needed, without quotes"#,
        ),
        (
            r#"{"MqttCert": "/c.pem"}"#,
            "MqttKey = \"\": MqttCert needs its key",
        ),
        (
            r#"{"MqttKey": "/k.pem"}"#,
            "MqttCert = \"\": MqttKey needs its certificate",
        ),
        (
            r#"{"FlowLifetimes": 7}"#,
            "FlowLifetimes = 7: an object is needed",
        ),
        (
            r#"{"FlowLifetimes": {"UdpAnswered": 0}}"#,
            "UdpAnswered = 0: a number of seconds from 0.1 to 604800 is needed",
        ),
        (
            r#"{"InterestSeconds": "soon"}"#,
            r#"InterestSeconds = "soon": a number of seconds"#,
        ),
        (
            r#"{"ProbeInterval": 19}"#,
            "ProbeInterval = 19: a number from 20 to 3600000 is needed",
        ),
        (
            r#"{"ProbesPerSecond": "0"}"#,
            r#"ProbesPerSecond = "0": a number from 1 to 100000 is needed"#,
        ),
        ("[]", "not a JSON object"),
        ("", "not a JSON object"),
    ];
    for (content, expected) in network {
        let error = read(Some(content), None).expect_err(content).to_string();
        assert!(
            error.contains(expected) && error.contains("netcfg.json"),
            "{content}: {error}"
        );
    }
    let tunnel = [
        (
            r#"{"MTUsize": 100}"#,
            "MTUsize = 100: a number from 576 to 65507 is needed",
        ),
        (
            r#"{"TunnelPort": -1}"#,
            "TunnelPort = -1: a number from 1 to 65535",
        ),
        (r#"{"TunnelPort": true}"#, "TunnelPort = true"),
        (
            r#"{"ProxySubnetwork": "10.40.0.0"}"#,
            "service addresses are in 10.30.0.0/255.255.0.0 on every node",
        ),
        (
            r#"{"ProxySubnetworkMask": "255.0.0.0"}"#,
            r#"ProxySubnetworkMask = "255.0.0.0""#,
        ),
        (r#"{"TunNetIPv6": "x"}"#, "TunNetIPv6"),
        (
            r#"{"ProxySubnetworkIPv6Prefix": 129}"#,
            "a number from 0 to 128 is needed",
        ),
    ];
    for (content, expected) in tunnel {
        let error = read(None, Some(content)).expect_err(content).to_string();
        assert!(
            error.contains(expected) && error.contains("tuncfg.json"),
            "{content}: {error}"
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_is_not_a_missing_one() {
    let root = TempDir::new().expect("temporary folder");
    let paths = Paths::new(root.path());
    std::fs::create_dir_all(&paths.network_file).expect("a folder in place of the file");
    let error = Config::read_with(&paths, |_| None)
        .expect_err("a folder")
        .to_string();
    assert!(error.contains("netcfg.json"), "{error}");
}

#[test]
fn the_environment_overrides_the_mtu() {
    let root = TempDir::new().expect("temporary folder");
    let paths = Paths::new(root.path());
    let with = |value: &str| {
        let value = OsString::from(value);
        Config::read_with(&paths, |name| (name == MTU_VARIABLE).then(|| value.clone()))
    };
    assert_eq!(with("1400").expect("a number").mtu, 1400);
    assert_eq!(with("").expect("empty is unset").mtu, 1450);
    let error = with("huge").expect_err("not a number").to_string();
    assert_eq!(
        error,
        r#"environment: TUN_MTU_SIZE = "huge": a number from 576 to 65507 is needed"#
    );
}

fn read(network: Option<&str>, tunnel: Option<&str>) -> Result<Config, ConfigError> {
    let root = TempDir::new().expect("temporary folder");
    let paths = Paths::new(root.path());
    let folder = paths.network_file.parent().expect("the file is in a folder");
    std::fs::create_dir_all(folder).expect("folder of the configuration");
    for (path, content) in [(&paths.network_file, network), (&paths.tunnel_file, tunnel)] {
        if let Some(content) = content {
            std::fs::write(path, content).expect("configuration file");
        }
    }
    Config::read_with(&paths, |_| None)
}
