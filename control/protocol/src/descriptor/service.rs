//! One service of a descriptor.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::reader::{Reader, identifier};
use super::{AddressWish, Finding, ServiceDescriptor};
use crate::job::Constraint;
use crate::ports::PortMappings;

pub(super) fn read(service: &Reader<'_>) -> Result<ServiceDescriptor, Finding> {
    if !service.text("microserviceID")?.unwrap_or_default().is_empty() {
        return Err(service.wrong("microserviceID", "is given by the root; leave it empty"));
    }
    let name = identifier(service, "microservice_name")?;
    let namespace = identifier(service, "microservice_namespace")?;
    let virtualization = match word(service, "virtualization")? {
        "container" => "docker",
        other => other,
    };
    let code = word(service, "code")?;
    let architectures = service.texts("arch")?;
    if virtualization == "unikernel" {
        check_architectures(service, code, &architectures)?;
    }
    let ports = service.text("port")?.unwrap_or_default();
    let ports = match PortMappings::from_str(ports) {
        Ok(ports) => ports,
        Err(error) => return Err(service.wrong("port", format!("is {ports:?}: {error}"))),
    };
    let mut warnings = Vec::new();
    let Addresses {
        rr_ip,
        rr_ip_v6,
        closest_ip,
    } = addresses(service, &mut warnings)?;
    let constraints = constraints(service, &mut warnings)?;
    ignored(service, &mut warnings)?;
    let read = ServiceDescriptor {
        path: service.path().to_owned(),
        name,
        namespace,
        virtualization: virtualization.to_owned(),
        code: code.to_owned(),
        cmd: command(service)?,
        environment: environment(service)?,
        ports,
        memory: service.number("memory")?,
        vcpus: service.number("vcpus")?,
        vgpus: service.number("vgpus")?,
        storage: service.number("storage")?,
        one_shot: service.boolean("one_shot")?,
        architectures,
        rr_ip,
        rr_ip_v6,
        closest_ip,
        constraints,
        warnings,
        given: service.whole().clone(),
    };
    Ok(read)
}

/// A text without spaces that has to be there.
fn word<'document>(service: &Reader<'document>, key: &str) -> Result<&'document str, Finding> {
    let text = service.required_text(key)?;
    if text.is_empty() {
        return Err(service.wrong(key, "is empty"));
    }
    if text
        .chars()
        .any(|character| character.is_whitespace() || character.is_control())
    {
        return Err(service.wrong(key, format!("is {text:?}; there are no spaces in it")));
    }
    Ok(text)
}

fn check_architectures(service: &Reader<'_>, code: &str, architectures: &[String]) -> Result<(), Finding> {
    let kernels = code.split(',').count();
    if architectures.is_empty() {
        return Err(service.wrong(
            "arch",
            "is missing; a unikernel needs its architectures, such as [\"amd64\"]",
        ));
    }
    if architectures.len() != kernels {
        return Err(service.wrong(
            "arch",
            format!(
                "names {} architectures for {kernels} unikernels in code; they go in pairs",
                architectures.len()
            ),
        ));
    }
    Ok(())
}

/// A command of empty texts only is what some forms send for none.
fn command(service: &Reader<'_>) -> Result<Vec<String>, Finding> {
    let command = service.texts("cmd")?;
    if let Some(index) = command.iter().position(|argument| argument.contains('\0')) {
        return Err(Finding {
            message: format!("cmd[{index}] holds a zero byte"),
            path: format!("{}[{index}]", service.place("cmd")),
        });
    }
    if command.iter().all(String::is_empty) {
        return Ok(Vec::new());
    }
    Ok(command)
}

fn environment(service: &Reader<'_>) -> Result<Vec<String>, Finding> {
    let environment = service.texts("environment")?;
    for (index, entry) in environment.iter().enumerate() {
        let key = entry.split_once('=').map_or("", |(key, _)| key);
        if key.is_empty() || entry.contains('\0') {
            return Err(Finding {
                message: format!("environment[{index}] is {entry:?}; it has the form KEY=value"),
                path: format!("{}[{index}]", service.place("environment")),
            });
        }
    }
    Ok(environment)
}

/// The addresses that the service wishes for.
#[derive(Default)]
struct Addresses {
    rr_ip: Option<Ipv4Addr>,
    rr_ip_v6: Option<Ipv6Addr>,
    closest_ip: Option<AddressWish>,
}

fn addresses(service: &Reader<'_>, warnings: &mut Vec<Finding>) -> Result<Addresses, Finding> {
    let Some(addresses) = service.object("addresses")? else {
        return Ok(Addresses::default());
    };
    let rr_ip = service_address(&addresses, "rr_ip", "an IPv4 address")?;
    let closest_ip = match addresses.text("closest_ip")? {
        Some("auto") => Some(AddressWish::Any),
        Some(_) | None => {
            service_address(&addresses, "closest_ip", "an IPv4 address or \"auto\"")?.map(AddressWish::This)
        }
    };
    if let (Some(AddressWish::This(closest)), Some(round_robin)) = (closest_ip, rr_ip)
        && closest == round_robin
    {
        let message = format!("is {closest}, as rr_ip is; an address has one meaning");
        return Err(addresses.wrong("closest_ip", message));
    }
    let rr_ip_v6: Option<Ipv6Addr> = address(&addresses, "rr_ip_v6", "an IPv6 address")?;
    if let Some(address) = rr_ip_v6
        && (address.segments()[0], address.segments()[1] & 0xf800) != (0xfdff, 0x2000)
    {
        return Err(addresses.wrong(
            "rr_ip_v6",
            format!("is {address}, which is not in fdff:2000::/21"),
        ));
    }
    if !addresses.text("closest_ip_v6")?.unwrap_or_default().is_empty() {
        warnings.push(addresses.wrong("closest_ip_v6", "is not acted on: the overlay carries IPv4"));
    }
    if !addresses.objects("instances")?.is_empty() {
        warnings.push(addresses.wrong(
            "instances",
            "is not acted on: the root chooses instance addresses",
        ));
    }
    Ok(Addresses {
        rr_ip,
        rr_ip_v6,
        closest_ip,
    })
}

/// An address that a service may have.
fn service_address(addresses: &Reader<'_>, key: &str, wanted: &str) -> Result<Option<Ipv4Addr>, Finding> {
    let Some(address) = address::<Ipv4Addr>(addresses, key, wanted)? else {
        return Ok(None);
    };
    if address.octets()[..2] != [10, 30] {
        return Err(addresses.wrong(key, format!("is {address}, which is not in 10.30.0.0/16")));
    }
    if matches!(address.octets()[2..], [0, 0] | [255, 255]) {
        let message = format!("is {address}, which is the address of the network itself or its broadcast");
        return Err(addresses.wrong(key, message));
    }
    Ok(Some(address))
}

fn address<A: FromStr>(addresses: &Reader<'_>, key: &str, wanted: &str) -> Result<Option<A>, Finding> {
    let text = addresses.text(key)?.unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(addresses.wrong(key, format!("is {text:?}, which is not {wanted}"))),
    }
}

fn constraints(service: &Reader<'_>, warnings: &mut Vec<Finding>) -> Result<Vec<Constraint>, Finding> {
    let mut constraints = Vec::new();
    for constraint in service.objects("constraints")? {
        let kind = constraint.required_text("type")?;
        for key in ["area", "location"] {
            constraint.text(key)?;
        }
        for key in ["threshold", "rigidness"] {
            constraint.check_number(key)?;
        }
        constraint.number("convergence_time")?;
        constraint.texts("needs")?;
        let acted_on = ["direct", "clusters"].contains(&kind);
        if !acted_on {
            warnings.push(constraint.wrong("type", format!("{kind:?} is not acted on")));
        }
        constraints.push(Constraint {
            kind: kind.to_owned(),
            cluster: constraint.text("cluster")?.unwrap_or_default().to_owned(),
            node: constraint.text("node")?.unwrap_or_default().to_owned(),
            allowed: constraint.texts("allowed")?,
            rest: constraint
                .all_but(&["type", "cluster", "node", "allowed"])
                .into_iter()
                .collect(),
        });
    }
    Ok(constraints)
}

/// Collects what is well-formed and not acted on.
fn ignored(service: &Reader<'_>, warnings: &mut Vec<Finding>) -> Result<(), Finding> {
    for key in ["vtpus", "bandwidth_in", "bandwidth_out", "storage"] {
        let number = service.number(key)?;
        if number > 0 {
            warnings.push(service.wrong(key, format!("{number} is not acted on")));
        }
    }
    for key in ["state", "sla_violation_strategy", "target_node"] {
        if !service.text(key)?.unwrap_or_default().is_empty() {
            warnings.push(service.wrong(key, "is not acted on"));
        }
    }
    for key in ["added_files", "args"] {
        if !service.texts(key)?.iter().all(String::is_empty) {
            warnings.push(service.wrong(key, "is not acted on"));
        }
    }
    if service.boolean("privileged")? {
        warnings.push(service.wrong("privileged", "is not acted on: the service runs unprivileged"));
    }
    let volumes = service.objects("volumes")?;
    for volume in &volumes {
        volume.required_text("volume_id")?;
        volume.required_text("csi_driver")?;
        volume.text("mount_path")?;
        volume.object("config")?;
    }
    if !volumes.is_empty() {
        warnings.push(service.wrong("volumes", "is not acted on: nothing is mounted"));
    }
    let connectivity = service.objects("connectivity")?;
    for wish in &connectivity {
        wish.required_text("target_microservice_id")?;
        if !wish.has("con_constraints") {
            return Err(wish.wrong("con_constraints", "is missing"));
        }
        for constraint in wish.objects("con_constraints")? {
            constraint.required_text("type")?;
            constraint.check_number("threshold")?;
            constraint.check_number("rigidness")?;
            constraint.number("convergence_time")?;
        }
    }
    if !connectivity.is_empty() {
        warnings.push(service.wrong("connectivity", "is not acted on"));
    }
    Ok(())
}
