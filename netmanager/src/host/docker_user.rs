//! Rules in `DOCKER-USER`, the chain that Docker leaves to others: Docker lets the host forward nothing but for its own
//! networks, which would cut this node's containers off from the world.
//!
//! ```text
//! -A DOCKER-USER -s SUBNET -i LINKS -m comment --comment oakestra:NODE -j ACCEPT
//! -A DOCKER-USER -d SUBNET -o LINKS -m conntrack --ctstate RELATED,ESTABLISHED -m comment ... -j ACCEPT
//! ```
//!
//! They stand behind whatever an administrator has put there, before the chain returns. They are made by `iptables`
//! itself, because Docker's own `iptables` could not read the chain any more with rules of another make in it. Where
//! there is no such chain, nothing is touched, and no table comes into being by looking.

use std::fs;
use std::io;
use std::process::Stdio;
use std::sync::OnceLock;

use ipnetwork::Ipv4Network;
use tokio::process::Command;

use super::firewall::nft;
use super::{Error, Result};
use crate::endpoint::name;

const CHAIN: &str = "DOCKER-USER";
/// The tables of the old kind that exist in this network namespace.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// Whose rules there should be, and for which addresses.
#[derive(Clone, Debug)]
pub struct DockerUserOptions {
    pub node_id: String,
    /// The subnets of this node's containers.
    pub subnets: Vec<Ipv4Network>,
}

/// The two kinds of `iptables`, which know nothing of each other's rules.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Nft,
    Legacy,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// How it is called where both are installed.
    const fn program(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }

    /// What `iptables --version` says of itself.
    const fn version(self) -> &'static str {
        match self {
            Self::Nft => "(nf_tables)",
            Self::Legacy => "(legacy)",
        }
    }
}

/// Puts this node's rules where they should be. Whether anything was changed.
///
/// # Errors
/// `nft` or `iptables` cannot be run or refuses.
pub async fn apply(options: &DockerUserOptions) -> Result<bool> {
    let mut changed = false;
    for kind in Kind::ALL {
        if let Some(chain) = Chain::find(kind).await? {
            changed |= chain.apply(options).await?;
        }
    }
    Ok(changed)
}

/// Whether there are rules of the old kind, whose changes the kernel does not tell.
pub fn may_change_unseen() -> bool {
    // If that cannot be told, it is better to look.
    has_legacy_table().unwrap_or(true)
}

/// Removes this node's rules; success when there are none.
///
/// # Errors
/// `nft` or `iptables` cannot be run or refuses.
pub async fn remove(node_id: &str) -> Result<()> {
    for kind in Kind::ALL {
        if let Some(chain) = Chain::find(kind).await? {
            let rules = chain.rules().await?;
            chain.delete_own(&rules, node_id).await?;
        }
    }
    Ok(())
}

/// The chain, by the program that it belongs to.
struct Chain {
    program: &'static str,
}

impl Chain {
    /// The chain of one kind, if there is one.
    async fn find(kind: Kind) -> Result<Option<Self>> {
        let may_exist = match kind {
            Kind::Nft => nft::has_chain("ip", "filter", CHAIN).await?,
            Kind::Legacy => has_legacy_table()?,
        };
        if !may_exist {
            return Ok(None);
        }
        let Some(program) = installed(kind).await else {
            tracing::warn!(
                program = kind.program(),
                "not installed, and Docker's rules are of its kind"
            );
            return Ok(None);
        };
        let chain = Self { program };
        Ok(match kind {
            Kind::Nft => Some(chain),
            Kind::Legacy => chain.succeeds(&["-S", CHAIN]).await?.then_some(chain),
        })
    }

    async fn apply(&self, options: &DockerUserOptions) -> Result<bool> {
        let wanted = wanted(options);
        let rules = self.rules().await?;
        if self.is_as_wanted(&rules, &options.node_id, &wanted).await? {
            return Ok(false);
        }
        self.delete_own(&rules, &options.node_id).await?;
        let place = place(&self.rules().await?);
        for (position, rule) in (place..).zip(&wanted) {
            let position = position.to_string();
            let mut arguments = vec!["-I", CHAIN, &position];
            arguments.extend(rule.iter().map(String::as_str));
            self.run(&arguments).await?;
        }
        Ok(true)
    }

    /// Whether each wanted rule is there, none besides, and all before the chain returns.
    async fn is_as_wanted(&self, rules: &[String], node_id: &str, wanted: &[Vec<String>]) -> Result<bool> {
        let own = own(rules, node_id);
        if own.len() != wanted.len() || own.iter().any(|number| *number >= place(rules)) {
            return Ok(false);
        }
        for rule in wanted {
            let mut arguments = vec!["-C", CHAIN];
            arguments.extend(rule.iter().map(String::as_str));
            if !self.succeeds(&arguments).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rules of the chain in order, as `iptables -S` writes them.
    async fn rules(&self) -> Result<Vec<String>> {
        let answer = self.run(&["-S", CHAIN]).await?;
        let rules = answer.lines().filter(|line| line.starts_with("-A "));
        Ok(rules.map(str::to_owned).collect())
    }

    /// From the last to the first, so that no number changes before its turn.
    async fn delete_own(&self, rules: &[String], node_id: &str) -> Result<()> {
        for number in own(rules, node_id).into_iter().rev() {
            self.run(&["-D", CHAIN, &number.to_string()]).await?;
        }
        Ok(())
    }

    async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Iptables {
            program: self.program,
            operation: arguments.join(" "),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    async fn succeeds(&self, arguments: &[&str]) -> Result<bool> {
        Ok(self.output(arguments).await?.status.success())
    }

    async fn output(&self, arguments: &[&str]) -> Result<std::process::Output> {
        // Docker may hold the lock for a moment.
        let output = command(self.program).args(["-w", "5"]).args(arguments).output();
        output
            .await
            .map_err(|error| Error::kernel("run", self.program, error))
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// The program of this kind, by its own name or as the one that is called `iptables` here.
async fn installed(kind: Kind) -> Option<&'static str> {
    // What is installed stays so; what is not may come.
    static FOUND: [OnceLock<&str>; 2] = [OnceLock::new(), OnceLock::new()];
    let found = &FOUND[kind as usize];
    if let Some(program) = found.get() {
        return Some(program);
    }
    for program in [kind.program(), "iptables"] {
        if let Ok(output) = command(program).arg("--version").output().await
            && String::from_utf8_lossy(&output.stdout).contains(kind.version())
        {
            return Some(found.get_or_init(|| program));
        }
    }
    None
}

fn has_legacy_table() -> Result<bool> {
    match fs::read_to_string(LEGACY_TABLES) {
        Ok(tables) => Ok(tables.lines().any(|table| table == "filter")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::kernel("read", LEGACY_TABLES, error)),
    }
}

/// Arguments of the rules, without the command and the chain.
fn wanted(options: &DockerUserOptions) -> Vec<Vec<String>> {
    let links = name::host_links(&options.node_id);
    let comment = comment(&options.node_id);
    let rule = |text: String| text.split(' ').map(str::to_owned).collect();
    let rules = options.subnets.iter().flat_map(|subnet| {
        let subnet = format!("{}/{}", subnet.network(), subnet.prefix());
        [
            format!("-s {subnet} -i {links} -m comment --comment {comment} -j ACCEPT"),
            format!(
                "-d {subnet} -o {links} -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment {comment} -j ACCEPT"
            ),
        ]
    });
    rules.map(rule).collect()
}

fn comment(node_id: &str) -> String {
    format!("oakestra:{node_id}")
}

/// Numbers of this node's rules, counted from one.
fn own(rules: &[String], node_id: &str) -> Vec<usize> {
    let comment = comment(node_id);
    let is_own = |rule: &str| rule.split(' ').any(|word| word.trim_matches('"') == comment);
    let numbered = (1..).zip(rules);
    numbered
        .filter(|(_, rule)| is_own(rule))
        .map(|(number, _)| number)
        .collect()
}

/// Number of the first rule that returns or drops whatever comes, or the one behind the last.
fn place(rules: &[String]) -> usize {
    let is_end = |rule: &String| {
        let rest = rule.strip_prefix("-A DOCKER-USER ");
        rest.is_some_and(|rest| rest.starts_with("-j "))
    };
    rules.iter().position(is_end).unwrap_or(rules.len()) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn own_rules_are_known_by_their_comment_and_stand_before_the_end() {
        let rules = rules(&[
            "-A DOCKER-USER -s 198.51.100.0/24 -j DROP",
            "-A DOCKER-USER -s 10.18.0.0/26 -m comment --comment \"oakestra:n1\" -j ACCEPT",
            "-A DOCKER-USER -s 10.18.1.0/26 -m comment --comment oakestra:n10 -j ACCEPT",
            "-A DOCKER-USER -j RETURN",
            "-A DOCKER-USER -d 10.18.0.0/26 -m comment --comment oakestra:n1 -j ACCEPT",
        ]);
        assert_eq!(own(&rules, "n1"), [2, 5]);
        assert_eq!(own(&rules, "n10"), [3]);
        assert_eq!(place(&rules), 4);
        assert_eq!(place(&rules[..3]), 4);
        assert_eq!(place(&[]), 1);
    }
}
