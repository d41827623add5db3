//! `test --kernel`: the tests of programs and nodes on other kernels than the running one.
//!
//! Debian's own kernels boot in qemu, without hardware's help, which takes some ten times as long as here. The virtual
//! machine sees this machine's file system, read-only, with a memory of its own above it, and its own kernel's modules:
//! so the same test programs run there that were built here, with the same tools.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{cargo, execute, output, show, which};
use crate::programs::OBJECT_VARIABLE;
use crate::test::Counts;
use crate::workspace::{root, target_directory};

/// Programs that are needed, and Debian's package of each.
const TOOLS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("busybox", "busybox-static"),
];
/// Where Debian's newer kernels are for its older releases.
const BACKPORTS: &str = "http://deb.debian.org/debian";
/// The tests that run there: of programs, and of nodes.
const TESTS: [&str; 4] = ["programs", "differential", "host_plumbing", "overlay"];
/// What the machine needs to see this one's file system.
const BOOT_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// What the tests use that no kernel loads by itself.
const TEST_MODULES: [&str; 4] = ["tun", "sch_ingress", "cls_bpf", "veth"];
/// Frames that the programs are compared with their model on; the suite's own number would take an hour there.
const CASES: u32 = 5_000;
/// What the machine says in the end, before the status of the tests.
const ENDED: &str = "oakestra-tests-ended ";

/// Runs the tests, or those whose name contains `filter`, on each of these kernels (`6.1`, `6.12`).
pub fn run(object: &Path, kernels: &[String], filter: Option<&str>) -> Result<ExitCode> {
    install_tools()?;
    let programs = build(object)?;
    let mut failed = Vec::new();
    for kernel in kernels {
        let release = fetch(kernel)?;
        println!("on Linux {release}:");
        let counts = boot(&release, &programs, filter)?;
        println!("on Linux {release}: {counts}");
        if counts.failed > 0 || counts.passed == 0 {
            failed.push(release);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed on Linux {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn install_tools() -> Result<()> {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| which(program).is_none() && which_in_sbin(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("apt-get");
    command
        .args(["install", "--yes", "--no-install-recommends"])
        .args(missing);
    execute(&mut command)
}

fn which_in_sbin(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_file())
}

/// Builds the test programs; where they are.
fn build(object: &Path) -> Result<Vec<PathBuf>> {
    let mut command = cargo()?;
    command
        .args([
            "test",
            "--locked",
            "-p",
            "netmanager",
            "--features",
            "netmanager/kernel-tests",
        ])
        .args(TESTS.iter().flat_map(|name| ["--test", name]))
        .args(["--no-run", "--message-format", "json"])
        .env(OBJECT_VARIABLE, object);
    show(&command);
    let messages = output(&mut command)?;
    let mut programs = Vec::new();
    for name in TESTS {
        let built = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        programs.push(built.with_context(|| format!("cargo built no test program {name}"))?);
    }
    Ok(programs)
}

fn folder() -> Result<PathBuf> {
    Ok(target_directory()?.join("kernels"))
}

/// Fetches and unpacks Debian's newest kernel of this version, unless it is there already; its release.
fn fetch(kernel: &str) -> Result<String> {
    let is_version = kernel
        .split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    ensure!(
        is_version && kernel.contains('.'),
        "{kernel:?} is no version of a kernel: it looks like 6.12"
    );
    let folder = folder()?;
    let found = |folder: &Path| -> Option<String> {
        let entries = fs::read_dir(folder).ok()?;
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| {
                name.starts_with(&format!("{kernel}.")) && folder.join(name).join("complete").exists()
            })
    };
    if let Some(release) = found(&folder) {
        return Ok(release);
    }
    let lists = folder.join("lists");
    fs::create_dir_all(lists.join("partial")).context("cannot make a folder for package lists")?;
    let sources = folder.join("sources.list");
    let release = output(Command::new("sh").args(["-c", ". /etc/os-release; echo $VERSION_CODENAME"]))?;
    let release = release.trim();
    let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    let mut text = String::new();
    for suite in [release.to_owned(), format!("{release}-backports")] {
        writeln!(text, "deb {key} {BACKPORTS} {suite} main")?;
    }
    fs::write(&sources, text).context("cannot write where the kernels are")?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        command
            .current_dir(&folder)
            .args(["-o", &format!("Dir::Etc::SourceList={}", sources.display())])
            .args(["-o", "Dir::Etc::SourceParts=/dev/null"])
            .args(["-o", &format!("Dir::State::Lists={}", lists.display())]);
        command
    };
    execute(apt("apt-get").args(["update", "--quiet"]))?;
    let version = kernel.replace('.', "\\.");
    let pattern = format!("^linux-image-{version}\\.[0-9]+[-+][0-9a-z+]*-?amd64$");
    let names = output(apt("apt-cache").args(["search", "--names-only", &pattern]))?;
    let mut packages: Vec<&str> = names
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    packages.sort_by_key(|name| numbers(name));
    let package = packages
        .last()
        .with_context(|| format!("Debian {release} and its backports have no kernel {kernel}"))?;
    execute(apt("apt-get").args(["download", package]))?;
    let archive = fs::read_dir(&folder)
        .context("cannot look for the package")?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.starts_with(&format!("{package}_"))
        })
        .context("apt-get downloaded nothing")?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let unpacked = folder.join(&release);
    execute(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&archive)
            .arg(&unpacked),
    )?;
    execute(
        Command::new("/sbin/depmod")
            .arg("--basedir")
            .arg(&unpacked)
            .arg(&release),
    )?;
    fs::remove_file(&archive).context("cannot remove the package")?;
    fs::write(unpacked.join("complete"), "").context("cannot note that the kernel is there")?;
    Ok(release)
}

/// The numbers in a name, by which it is newer or older.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Boots a kernel and runs the test programs in it.
fn boot(release: &str, programs: &[PathBuf], filter: Option<&str>) -> Result<Counts> {
    let kernel = folder()?.join(release);
    let script = kernel.join("tests.sh");
    fs::write(&script, tests(&kernel, release, programs, filter)?).context("cannot write what is to run")?;
    let memory = initial_file_system(&kernel, release, &script)?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "3G",
        ])
        .args([
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .arg("-kernel")
        .arg(kernel.join("boot").join(format!("vmlinuz-{release}")))
        .arg("-initrd")
        .arg(memory)
        .args(["-append", "console=ttyS0 quiet loglevel=3 panic=-1"])
        .args([
            "-virtfs",
            "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    show(&command);
    let mut machine = command.spawn().context("cannot run qemu")?;
    let lines = machine.stdout.take().context("qemu's output is not piped")?;
    let mut counts = Counts::default();
    let mut ended = false;
    for line in BufReader::new(lines).split(b'\n') {
        let line = line.context("cannot read qemu's output")?;
        let text = String::from_utf8_lossy(&line);
        ended |= text.contains(ENDED);
        if let Some(result) = Counts::parse(&text) {
            counts += result;
        }
        writeln!(stdout(), "{}", text.trim_end()).context("cannot write")?;
    }
    machine.wait().context("cannot wait for qemu")?;
    ensure!(ended, "the virtual machine ended before its tests did");
    Ok(counts)
}

/// What runs in the machine.
fn tests(kernel: &Path, release: &str, programs: &[PathBuf], filter: Option<&str>) -> Result<String> {
    let mut script = format!(
        "mount -t bpf bpf /sys/fs/bpf; mount -t tmpfs run /run\n\
         mount -t tmpfs modules /lib/modules; mkdir /lib/modules/{release}\n\
         mount --bind {}/lib/modules/{release} /lib/modules/{release}\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=0 \
         OAKESTRA_CASES={CASES}\n\
         ip link set lo up\n",
        quoted(kernel)?
    );
    for module in TEST_MODULES {
        writeln!(script, "modprobe {module}")?;
    }
    writeln!(script, "cd {}/netmanager\nstatus=0", quoted(root())?)?;
    let filter = filter
        .map(|filter| format!("'{}'", filter.replace('\'', "")))
        .unwrap_or_default();
    for program in programs {
        writeln!(
            script,
            "{} --test-threads=2 {filter} || status=1",
            quoted(program)?
        )?;
    }
    writeln!(
        script,
        "echo {ENDED}$status\necho o > /proc/sysrq-trigger; sleep 60"
    )?;
    Ok(script)
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().context("a path that is no text")?;
    if text.contains('\'') {
        bail!("a path with a quotation mark: {text}");
    }
    Ok(format!("'{text}'"))
}

/// The first file system of the machine: enough to see this one's.
fn initial_file_system(kernel: &Path, release: &str, script: &Path) -> Result<PathBuf> {
    let tree = kernel.join("initial");
    if tree.exists() {
        fs::remove_dir_all(&tree).context("cannot remove an earlier file system")?;
    }
    for name in ["bin", "modules", "root", "lower", "upper", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(name)).context("cannot make the file system")?;
    }
    let busybox = which("busybox").context("busybox is not on PATH")?;
    fs::copy(busybox, tree.join("bin/busybox")).context("cannot copy busybox")?;
    let modules = kernel.join("lib/modules").join(release);
    let dependencies =
        fs::read_to_string(modules.join("modules.dep")).context("cannot read what modules need")?;
    let mut order = Vec::new();
    for module in BOOT_MODULES {
        for path in needed(&dependencies, module) {
            let name = file_name(path);
            if order.contains(&name) {
                continue;
            }
            unpack(&modules.join(path), &tree.join("modules").join(&name))?;
            order.push(name);
        }
    }
    let mut init = String::from(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; \
         $b mount -t devtmpfs dev /dev\n",
    );
    for name in &order {
        writeln!(init, "$b insmod /modules/{name}")?;
    }
    write!(
        init,
        "$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose root /lower || $b poweroff -f\n\
         $b mount -t tmpfs -o size=75% tmpfs /upper; $b mkdir /upper/files /upper/work\n\
         $b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root\n\
         for d in proc sys dev; do $b mount --move /$d /root/$d; done\n\
         exec $b chroot /root /bin/sh {}\n",
        quoted(script)?
    )?;
    let path = tree.join("init");
    fs::write(&path, init).context("cannot write init")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("cannot make init executable")?;
    let archive = kernel.join("initial.cpio");
    let mut command = Command::new("sh");
    command
        .current_dir(&tree)
        .args(["-c", "find . | cpio --quiet -o -H newc > ../initial.cpio"]);
    execute(&mut command)?;
    Ok(archive)
}

/// The files of a module and of all that it needs, those first; none where it is built in.
fn needed<'a>(dependencies: &'a str, module: &str) -> Vec<&'a str> {
    let line = dependencies.lines().find_map(|line| {
        let (path, needs) = line.split_once(':')?;
        let name = file_name(path);
        (name.strip_suffix(".ko") == Some(module)).then_some((path, needs))
    });
    let Some((path, needs)) = line else {
        return Vec::new();
    };
    let mut paths: Vec<&str> = needs.split_whitespace().rev().collect();
    paths.push(path);
    paths
}

/// The name of a module's file, unpacked.
fn file_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.trim_end_matches(".xz").to_owned()
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_some_and(|extension| extension == "xz") {
        let file = fs::File::create(to).context("cannot write a module")?;
        let mut command = Command::new("xz");
        command.args(["--decompress", "--stdout"]).arg(from).stdout(file);
        let status = command.status().context("cannot run xz")?;
        ensure!(status.success(), "xz could not unpack {}", from.display());
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let dependencies = "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko\n\
                            kernel/net/9p/9pnet.ko.xz:\n";
        assert_eq!(
            needed(dependencies, "9p"),
            [
                "kernel/fs/netfs/netfs.ko",
                "kernel/net/9p/9pnet.ko",
                "kernel/fs/9p/9p.ko"
            ]
        );
        assert_eq!(needed(dependencies, "9pnet"), ["kernel/net/9p/9pnet.ko.xz"]);
        assert_eq!(needed(dependencies, "veth"), Vec::<&str>::new());
    }

    #[test]
    fn the_newest_kernel_is_that_of_the_highest_numbers() {
        let mut names = ["linux-image-6.1.0-9-amd64", "linux-image-6.1.0-56-amd64"];
        names.sort_by_key(|name| numbers(name));
        assert_eq!(names[1], "linux-image-6.1.0-56-amd64");
    }

    #[test]
    fn a_version_is_numbers() {
        for wrong in ["6", "6.", "six.one", "6.1; rm", ""] {
            fetch(wrong).expect_err(wrong);
        }
    }
}
