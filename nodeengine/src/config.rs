//! `conf.json`, in the format that other node engines have too.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{operation} {path}")]
    Io {
        operation: &'static str,
        path: String,
        source: io::Error,
    },
    #[error("{path} cannot be read, and was left as it is: {source}")]
    Content { path: String, source: serde_json::Error },
    #[error("{0}")]
    Value(String),
}

/// What the file says. Keys that mean nothing here are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    pub conf_version: String,
    /// Host name or address of the cluster.
    pub cluster_address: String,
    pub cluster_ssl: bool,
    /// Where nodes register.
    pub cluster_port: u16,
    pub app_logs: String,
    /// `default`, `custom:<socket of NetManager>`, or anything else for no overlay.
    pub overlay_network: String,
    pub overlay_network_port: u16,
    pub public_ip: bool,
    pub mqtt_cert_file: String,
    pub mqtt_key_file: String,
    /// The misspelling is the format's.
    #[serde(rename = "virtualizations")]
    pub runtimes: Vec<RuntimeEntry>,
    /// Extension: seconds between SIGTERM and SIGKILL.
    pub stop_grace_seconds: u32,
    /// Extension: name servers of containers; those of the host when empty.
    pub dns_servers: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A runtime of the node. The misspellings are the format's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeEntry {
    #[serde(rename = "virutalizaiton_name")]
    pub name: String,
    #[serde(rename = "virutalizaiton_runtime")]
    pub runtime: String,
    #[serde(rename = "virutalizaiton_active")]
    pub active: bool,
    #[serde(rename = "virutalizaiton_config")]
    pub config: Option<Value>,
}

impl Default for RuntimeEntry {
    fn default() -> Self {
        Self {
            name: "docker".to_owned(),
            runtime: "docker".to_owned(),
            active: true,
            config: None,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            conf_version: "1.0".to_owned(),
            cluster_address: "0.0.0.0".to_owned(),
            cluster_ssl: false,
            cluster_port: 10100,
            app_logs: "/tmp".to_owned(),
            overlay_network: "default".to_owned(),
            overlay_network_port: 0,
            public_ip: false,
            mqtt_cert_file: String::new(),
            mqtt_key_file: String::new(),
            runtimes: vec![RuntimeEntry::default()],
            stop_grace_seconds: 10,
            dns_servers: Vec::new(),
            rest: BTreeMap::new(),
        }
    }
}

impl Config {
    /// What the file says; the defaults when there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or asks for what there is not. It is left as it is.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(ConfigError::Io {
                    operation: "reading",
                    path: path.display().to_string(),
                    source,
                });
            }
        };
        serde_json::from_slice(&text).map_err(|source| ConfigError::Content {
            path: path.display().to_string(),
            source,
        })
    }

    /// Refuses what would be unsafe to ignore.
    ///
    /// # Errors
    /// When the configuration asks for protection that this version does not have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.cluster_ssl {
            let message = "cluster_ssl is set, and this version does not speak HTTPS to its cluster";
            return Err(ConfigError::Value(message.to_owned()));
        }
        if !self.mqtt_cert_file.is_empty() || !self.mqtt_key_file.is_empty() {
            let message =
                "mqtt_cert_file and mqtt_key_file are set, and this version does not speak TLS to the broker";
            return Err(ConfigError::Value(message.to_owned()));
        }
        let address = &self.cluster_address;
        if address.is_empty() || address.contains('/') || address.contains(char::is_whitespace) {
            let message = format!(
                "cluster address {address:?}: a host name or an address is needed, without scheme, port and path"
            );
            return Err(ConfigError::Value(message));
        }
        Ok(())
    }

    /// Puts this in the place of the file.
    ///
    /// # Errors
    /// When the folder cannot be written; the old file stays.
    pub fn write(&self, path: &Path) -> Result<(), ConfigError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|source| ConfigError::Content {
            path: path.display().to_string(),
            source,
        })?;
        text.push(b'\n');
        files::replace(path, &text, 0o644).map_err(|source| ConfigError::Io {
            operation: "writing",
            path: path.display().to_string(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_of_another_node_engine_reads_and_keeps_what_is_unknown() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("etc/oakestra/conf.json");
        let wire = json!({
            "conf_version": "1.0", "cluster_address": "192.0.2.1", "cluster_ssl": false, "cluster_port": 10101,
            "app_logs": "/tmp", "overlay_network": "default", "overlay_network_port": 0, "public_ip": false,
            "mqtt_cert_file": "", "mqtt_key_file": "", "addons": null, "csi_drivers": null,
            "virtualizations": [{"virutalizaiton_name": "containerd", "virutalizaiton_runtime": "docker",
                "virutalizaiton_active": true, "virutalizaiton_config": []}],
            "padding": "x".repeat(4096)
        });
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(&path, wire.to_string()).expect("write");
        let config = Config::read(&path).expect("config");
        assert_eq!(config.cluster_port, 10101);
        assert!(config.validate().is_ok());
        config.write(&path).expect("write");
        let written: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
        for (key, value) in wire.as_object().expect("object") {
            assert_eq!(&written[key], value, "{key}");
        }
    }

    #[test]
    fn a_broken_file_is_said_and_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("conf.json");
        for text in ["", "{", r#"{"cluster_port": 70000}"#] {
            fs::write(&path, text).expect("write");
            let error = Config::read(&path).expect_err(text).to_string();
            assert!(error.contains("left as it is"), "{error}");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
        }
    }

    #[test]
    fn protection_that_is_not_there_is_refused() {
        let cases = [
            Config {
                cluster_ssl: true,
                ..Config::default()
            },
            Config {
                mqtt_cert_file: "/x".to_owned(),
                ..Config::default()
            },
            Config {
                cluster_address: "http://192.0.2.1".to_owned(),
                ..Config::default()
            },
        ];
        for config in cases {
            assert!(config.validate().is_err(), "{config:?}");
        }
    }
}
