//! The container of a placement, in Docker's terms.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, NetworkingConfig,
};
use protocol::job::{InstanceKey, Placement};

use super::{
    DockerSettings, LABEL_INCARNATION, LABEL_INSTANCE, LABEL_NODE, LABEL_SERVICE, NetworkMode, reference,
};

/// Processes and threads in one container: far more than services have, far less than a node.
const PROCESSES: i64 = 4096;
/// Output that Docker keeps of a container.
const LOG_SIZE: &str = "10m";
const LOG_FILES: &str = "3";
const NANO_CPUS: u64 = 1_000_000_000;
const MEBIBYTE: u64 = 1024 * 1024;

/// What decides what a container is.
pub(super) struct Specification<'a> {
    pub(super) settings: &'a DockerSettings,
    pub(super) network: &'a str,
    pub(super) placement: &'a Placement,
}

/// Name of an instance's container. Two nodes on one Docker have different ones.
pub(super) fn container_name(node: &str, key: &InstanceKey) -> String {
    let node = node.get(..8).unwrap_or(node);
    format!("{}.instance.{}-{node}", key.job_name, key.instance_number)
}

impl Specification<'_> {
    /// What Docker is to create.
    pub(super) fn body(&self) -> ContainerCreateBody {
        let job = &self.placement.job;
        let hostname = format!("instance-{}", self.placement.instance_number);
        let mut environment = vec![format!("HOSTNAME={hostname}")];
        environment.extend(job.environment.iter().cloned());
        let grace = i64::try_from(self.settings.grace.as_secs()).unwrap_or(i64::MAX);
        ContainerCreateBody {
            image: Some(reference::normal(&job.image)),
            hostname: Some(hostname),
            env: Some(environment),
            // An entry point of one's own also takes the image's arguments away.
            entrypoint: (!job.cmd.is_empty()).then(|| job.cmd.clone()),
            labels: Some(self.labels()),
            stop_timeout: Some(grace),
            host_config: Some(self.host()),
            networking_config: self.networking(),
            ..ContainerCreateBody::default()
        }
    }

    fn labels(&self) -> HashMap<String, String> {
        let placement = self.placement;
        HashMap::from([
            (LABEL_NODE.to_owned(), self.settings.node.clone()),
            (LABEL_SERVICE.to_owned(), placement.job.job_name.to_string()),
            (LABEL_INSTANCE.to_owned(), placement.instance_number.to_string()),
            (LABEL_INCARNATION.to_owned(), placement.incarnation.to_string()),
        ])
    }

    fn host(&self) -> HostConfig {
        let job = &self.placement.job;
        let limit = |amount: u64, unit: u64| {
            let amount = i64::try_from(amount.saturating_mul(unit)).unwrap_or(i64::MAX);
            (amount > 0).then_some(amount)
        };
        let memory = limit(job.memory, MEBIBYTE);
        let dns = &self.settings.dns_servers;
        HostConfig {
            memory,
            // Memory and swap together: no swap.
            memory_swap: memory,
            nano_cpus: limit(job.vcpus, NANO_CPUS),
            pids_limit: Some(PROCESSES),
            network_mode: Some(self.network.to_owned()),
            dns: (!dns.is_empty()).then(|| dns.clone()),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(HashMap::from([
                    ("max-size".to_owned(), LOG_SIZE.to_owned()),
                    ("max-file".to_owned(), LOG_FILES.to_owned()),
                ])),
            }),
            ..HostConfig::default()
        }
    }

    /// Tells the network's driver whom it attaches.
    fn networking(&self) -> Option<NetworkingConfig> {
        if self.settings.network == NetworkMode::Plain {
            return None;
        }
        let placement = self.placement;
        let mut options = HashMap::from([
            ("oakestra.service", placement.job.job_name.to_string()),
            ("oakestra.instance", placement.instance_number.to_string()),
            ("oakestra.incarnation", placement.incarnation.to_string()),
            ("oakestra.app_id", placement.app_id.to_string()),
            ("oakestra.port_mappings", placement.job.port.clone()),
        ]);
        if let Some(address) = placement.instance_ip {
            options.insert("oakestra.instance_ip", address.to_string());
        }
        if let Some(address) = placement.instance_ip_v6 {
            options.insert("oakestra.instance_ip_v6", address.to_string());
        }
        // Addresses are texts and numbers, which always can be written.
        if let Ok(addresses) = serde_json::to_string(&placement.service_ip) {
            options.insert("oakestra.service_ips", addresses);
        }
        let options = options
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let endpoint = EndpointSettings {
            driver_opts: Some(options),
            ..EndpointSettings::default()
        };
        Some(NetworkingConfig {
            endpoints_config: Some(HashMap::from([(self.network.to_owned(), endpoint)])),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    const NODE: &str = "0123456789abcdef01234567";

    fn body(network: NetworkMode, changes: &Value) -> Value {
        let mut placement = json!({
            "microserviceID": "65f0", "job_name": "a.b.c.d", "image": "nginx", "virtualization": "docker",
            "port": "80:80", "memory": 100, "vcpus": 2, "environment": ["A=b"], "cmd": ["sh", "-c", "x"],
            "instance_number": 3, "incarnation": 65536, "instance_ip": "10.30.0.5", "appId": 7,
            "service_ip": [{"IpType": "RR", "Address": "10.30.55.55", "Address_v6": ""}]
        });
        for (key, value) in changes.as_object().expect("changes") {
            placement[key] = value.clone();
        }
        let placement = serde_json::from_value(placement).expect("placement");
        let settings = DockerSettings {
            host: String::new(),
            node: NODE.to_owned(),
            network,
            grace: Duration::from_secs(10),
            dns_servers: Vec::new(),
        };
        let specification = Specification {
            settings: &settings,
            network: "net",
            placement: &placement,
        };
        serde_json::to_value(specification.body()).expect("body")
    }

    #[test]
    fn a_placement_becomes_a_container_with_limits_labels_and_the_drivers_options() {
        let body = body(NetworkMode::Overlay, &json!({}));
        assert_eq!(body["Image"], "nginx:latest");
        assert_eq!(body["Hostname"], "instance-3");
        assert_eq!(body["Env"], json!(["HOSTNAME=instance-3", "A=b"]));
        assert_eq!(body["Entrypoint"], json!(["sh", "-c", "x"]));
        assert_eq!(body.get("Cmd"), None);
        assert_eq!(
            body["Labels"],
            json!({"oakestra.node": NODE, "oakestra.service": "a.b.c.d", "oakestra.instance": "3",
                "oakestra.incarnation": "65536"})
        );
        let host = &body["HostConfig"];
        assert_eq!(host["Memory"], 104_857_600);
        assert_eq!(host["MemorySwap"], 104_857_600);
        assert_eq!(host["NanoCpus"], 2_000_000_000_u64);
        assert_eq!(host["NetworkMode"], "net");
        assert_eq!(
            body["NetworkingConfig"]["EndpointsConfig"]["net"]["DriverOpts"],
            json!({"oakestra.service": "a.b.c.d", "oakestra.instance": "3", "oakestra.incarnation": "65536",
                "oakestra.instance_ip": "10.30.0.5", "oakestra.app_id": "7", "oakestra.port_mappings": "80:80",
                "oakestra.service_ips": r#"[{"IpType":"RR","Address":"10.30.55.55","Address_v6":""}]"#})
        );
    }

    #[test]
    fn nothing_asked_is_nothing_limited() {
        let body = body(NetworkMode::Plain, &json!({"memory": 0, "vcpus": 0, "cmd": []}));
        for key in ["Memory", "MemorySwap", "NanoCpus", "RestartPolicy", "Privileged"] {
            assert_eq!(body["HostConfig"].get(key), None, "{key}");
        }
        assert_eq!(
            (body.get("Entrypoint"), body.get("NetworkingConfig")),
            (None, None)
        );
    }

    #[test]
    fn names_of_containers_say_whose_they_are() {
        let key = InstanceKey {
            job_name: "a.b.c.d".parse().expect("name"),
            instance_number: 3,
        };
        assert_eq!(container_name(NODE, &key), "a.b.c.d.instance.3-01234567");
    }
}
