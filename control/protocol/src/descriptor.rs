//! The deployment descriptor (SLA v2.0): what a person writes to say which services an application has.
//!
//! It is read by hand and not by derived code, so that every refusal names the place in the document:
//! `applications[0].microservices[1].port`. Keys that this version does not know are kept.

mod reader;
mod service;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::job::Constraint;
use crate::network::ServiceName;
use crate::ports::PortMappings;

use reader::{Reader, identifier};

/// The only version there is.
pub const VERSION: &str = "v2.0";

/// Most services that one descriptor may name.
pub const MOST_SERVICES: usize = 1000;

/// Something about one place of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Finding {
    /// A sentence for a person.
    pub message: String,
    /// Where, such as `applications[0].microservices[1].port`; empty for the whole document.
    pub path: String,
}

/// A whole descriptor.
#[derive(Clone, Debug, PartialEq)]
pub struct Descriptor {
    pub applications: Vec<ApplicationDescriptor>,
}

/// One application of a descriptor.
#[derive(Clone, Debug, PartialEq)]
pub struct ApplicationDescriptor {
    /// Where it stands, such as `applications[0]`.
    pub path: String,
    /// The id of an application that exists already; empty for a new one.
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub description: String,
    pub services: Vec<ServiceDescriptor>,
    /// Every other key.
    pub rest: Map<String, Value>,
}

/// One service of an application.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceDescriptor {
    /// Where it stands, such as `applications[0].microservices[1]`.
    pub path: String,
    pub name: String,
    pub namespace: String,
    /// `docker` where the document says `container`.
    pub virtualization: String,
    /// Reference of an image, or addresses of unikernels separated by commas.
    pub code: String,
    /// Replaces entry point and arguments of the image; empty for those of the image.
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub environment: Vec<String>,
    pub ports: PortMappings,
    /// MiB; 0 for no limit.
    pub memory: u64,
    /// Cores; 0 for no limit.
    pub vcpus: u64,
    pub vgpus: u64,
    /// MiB.
    pub storage: u64,
    pub one_shot: bool,
    /// The architecture of each unikernel, in the order of `code`.
    pub architectures: Vec<String>,
    /// The address that the service wishes for, in 10.30.0.0/16.
    pub rr_ip: Option<Ipv4Addr>,
    /// Its counterpart, in fdff:2000::/21.
    pub rr_ip_v6: Option<Ipv6Addr>,
    /// The address of its closest instance; `None` for none.
    pub closest_ip: Option<AddressWish>,
    pub constraints: Vec<Constraint>,
    /// What is accepted and not acted on.
    pub warnings: Vec<Finding>,
    /// Every key as it was given.
    pub given: Map<String, Value>,
}

/// What a service wishes for where it may leave the choice of an address to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressWish {
    /// Whichever is free: `"auto"`.
    Any,
    This(Ipv4Addr),
}

impl ServiceDescriptor {
    /// The name of the service within an application.
    ///
    /// # Errors
    /// When the application's names are not names.
    pub fn job_name(
        &self,
        application: &str,
        namespace: &str,
    ) -> Result<ServiceName, crate::network::ServiceNameError> {
        format!("{application}.{namespace}.{}.{}", self.name, self.namespace).parse()
    }
}

impl Descriptor {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(document: &Value) -> Result<Self, Finding> {
        let document = Reader::root(document)?;
        let version = match document.text("sla_version") {
            Ok(Some(version)) => version,
            Ok(None) if document.has("microservices") && !document.has("applications") => {
                return Err(document.wrong(
                    "sla_version",
                    "is missing; this is a list of microservices alone, which belongs into applications[0] \
                     of a descriptor",
                ));
            }
            Ok(None) => return Err(document.wrong("sla_version", format!("is missing; it is {VERSION:?}"))),
            Err(finding) => return Err(finding),
        };
        if version != VERSION {
            return Err(document.wrong(
                "sla_version",
                format!("is {version:?}; the only version is {VERSION:?}"),
            ));
        }
        document.required_text("customerID")?;
        document.texts("args")?;
        if !document.has("applications") {
            return Err(document.wrong("applications", "is missing"));
        }
        let mut applications = Vec::new();
        let mut names = BTreeMap::new();
        let mut services = 0;
        for application in document.objects("applications")? {
            let application = read_application(&application)?;
            services += application.services.len();
            if services > MOST_SERVICES {
                return Err(Finding {
                    message: format!("more than {MOST_SERVICES} services in one descriptor"),
                    path: application.path,
                });
            }
            let name = (application.name.clone(), application.namespace.clone());
            if let Some(other) = names.insert(name, application.path.clone()) {
                return Err(Finding {
                    message: format!("has the name and namespace of {other}"),
                    path: format!("{}.application_name", application.path),
                });
            }
            applications.push(application);
        }
        Ok(Self { applications })
    }
}

fn read_application(application: &Reader<'_>) -> Result<ApplicationDescriptor, Finding> {
    let name = identifier(application, "application_name")?;
    let namespace = identifier(application, "application_namespace")?;
    if !application.has("microservices") {
        return Err(application.wrong("microservices", "is missing; it may be empty"));
    }
    let mut services: Vec<ServiceDescriptor> = Vec::new();
    for service in application.objects("microservices")? {
        let service = service::read(&service)?;
        let twin = |other: &&ServiceDescriptor| {
            (&other.name, &other.namespace) == (&service.name, &service.namespace)
        };
        if let Some(twin) = services.iter().find(twin) {
            return Err(Finding {
                message: format!(
                    "{:?} in namespace {:?} is the name of {} already",
                    service.name, service.namespace, twin.path
                ),
                path: format!("{}.microservice_name", service.path),
            });
        }
        services.push(service);
    }
    let known = [
        "applicationID",
        "application_name",
        "application_namespace",
        "application_desc",
        "microservices",
    ];
    Ok(ApplicationDescriptor {
        path: application.path().to_owned(),
        id: application.text("applicationID")?.unwrap_or_default().to_owned(),
        name,
        namespace,
        description: application
            .text("application_desc")?
            .unwrap_or_default()
            .to_owned(),
        services,
        rest: application.all_but(&known),
    })
}
