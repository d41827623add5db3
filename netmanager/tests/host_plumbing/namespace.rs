//! Network namespaces for tests: one per test as the host, further ones held by a process.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use netmanager::endpoint::Namespace;
use nix::sched::{CloneFlags, setns, unshare};

/// No condition that is waited for takes longer.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Runs a test in a network namespace of its own, which is gone with the thread.
pub fn as_host<T>(test: T)
where
    T: AsyncFnOnce() + Send + 'static,
{
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run as root");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(test());
    });
}

/// Runs something as user nobody, without any capability, in the namespace of the caller.
pub fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    const NOBODY: libc::uid_t = 65_534;
    on_thread(|| {
        // SAFETY: takes three numbers. Unlike the C library's function, the system call changes this thread
        // only.
        let outcome = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
        work()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// A process in a network namespace of its own: stands for a container, or for another host.
pub struct Process(Child);

impl Process {
    pub fn start() -> Self {
        let mut command = Command::new("sleep");
        command.arg("infinity");
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe { command.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWNET)?)) };
        let process = Self(command.spawn().expect("a process in a namespace"));
        // Link-local addresses come at a pace of their own.
        let setting = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
        process
            .run(|| std::fs::write(setting, "1"))
            .expect("switches IPv6 off");
        process
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs something inside; sockets that it opens stay inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = Namespace::of_process(self.pid()).expect("a namespace");
        on_thread(|| {
            let file = std::fs::File::open(format!("/proc/{}/ns/net", self.pid())).expect("a namespace");
            setns(&file, CloneFlags::CLONE_NEWNET).expect("enters");
            assert!(
                Namespace::current()
                    .and_then(|current| current.is(&namespace))
                    .expect("a namespace")
            );
            work()
        })
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.run(|| ip(arguments))
    }

    pub fn snapshot(&self) -> String {
        self.run(snapshot)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().expect("kills");
        self.0.wait().expect("waits");
    }
}

/// Joins this namespace and another by a veth pair: `name` here, `eth0` there.
pub fn wire(name: &str, here: &str, other: &Process, there: &str) {
    ip(&format!(
        "link add {name} type veth peer name eth0 netns {}",
        other.pid()
    ));
    ip(&format!("address add {here} dev {name}"));
    ip(&format!("link set {name} up"));
    other.ip(&format!("address add {there} dev eth0"));
    other.ip("link set lo up");
    other.ip("link set eth0 up");
}

pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// Everything of the namespace that NetManager could have touched, without what the kernel changes by itself
/// some time later, and without the queueing discipline that an interface gets when it is up for the first
/// time.
pub fn snapshot() -> String {
    let parts = [
        ip("-d link show"),
        ip("address show"),
        ip("-4 route show table all"),
        ip("-6 route show table all"),
        ip("neighbour show nud permanent"),
        nft("-s list ruleset"),
    ];
    parts
        .iter()
        .flat_map(|part| part.lines())
        .map(settled)
        .collect::<Vec<_>>()
        .join("\n")
}

fn settled(line: &str) -> String {
    let line = ["NO-CARRIER,", ",LOWER_UP"]
        .iter()
        .fold(line.to_owned(), |line, word| line.replace(word, ""));
    let mut words = line.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if ["qdisc", "state"].contains(&word) {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

/// Waits until something is so.
pub async fn eventually<C: AsyncFnMut() -> bool>(what: &str, mut condition: C) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
