//! The container images of the user's example, made out of Debian's packages.
//!
//! A lab has no way to a registry, and what it shows must not depend on one. So one root file system is made of
//! Debian's nginx, curl and busybox, and imported twice, under the names that the descriptor asks for.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::docker::DockerClient;
use crate::process::output;

/// Variable that tells tests where [`make`] has left the archive.
pub const FOLDER_VARIABLE: &str = "OAKESTRA_IMAGES";

/// An image by its full name, as a descriptor gives it in `code`.
#[derive(Debug)]
pub struct Image {
    pub name: &'static str,
    /// What `docker import --change` is told; the rest is as the image of this name has it.
    changes: &'static [&'static str],
}

/// nginx: serves `/usr/share/nginx/html` on port 80.
pub const NGINX: Image = Image {
    name: "docker.io/library/nginx:latest",
    changes: &[
        "ENTRYPOINT [\"nginx\"]",
        "CMD [\"-g\",\"daemon off;\"]",
        "EXPOSE 80/tcp",
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ],
};

/// curl, with a shell; what is no command becomes curl's arguments.
pub const CURL: Image = Image {
    name: "docker.io/curlimages/curl:7.82.0",
    changes: &[
        "ENTRYPOINT [\"/entrypoint.sh\"]",
        "CMD [\"curl\"]",
        "USER curl_user",
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ],
};

/// All images that there are.
pub const IMAGES: [&Image; 2] = [&NGINX, &CURL];

/// Where nginx's page is.
pub const PAGE: &str = "/usr/share/nginx/html/index.html";

/// The packages of one release, whatever the machine runs: what is made is the same everywhere.
const RELEASE: &str = "bookworm";
const PACKAGES: &str = "nginx-light,curl,ca-certificates,busybox-static";
const ARCHIVE: &str = "images.tar";
const RECIPE: &str = "images.recipe";

/// What package scripts would do, which an extracted system has not seen, and what the two images have in common with
/// those of their name. Runs with the new root as its first argument.
const HOOK: &str = r#"#!/bin/sh
set -eu
cd "$1"
mkdir -p run tmp dev proc sys root var/log/nginx var/lib/nginx var/www usr/share/nginx/html
chmod 1777 tmp
cat > etc/passwd <<'END'
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/sh
curl_user:x:100:101:curl_user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/tmp:/bin/sh
END
cat > etc/group <<'END'
root:x:0:
www-data:x:33:
curl_group:x:101:
nogroup:x:65534:
END
rm -rf etc/nginx/sites-enabled/* etc/nginx/modules-enabled/*
cat > etc/nginx/conf.d/default.conf <<'END'
server {
    listen 80 default_server;
    server_name localhost;
    location / {
        root /usr/share/nginx/html;
        index index.html;
    }
}
END
ln -sf /dev/stdout var/log/nginx/access.log
ln -sf /dev/stderr var/log/nginx/error.log
for command in sh ash cat cp cut date echo env false find grep head hostname id kill ls mkdir mv nc ping printf ps \
    rm sed sleep sort tail tee test touch tr true uname vi wc wget; do
    [ -e "bin/$command" ] || [ -e "usr/bin/$command" ] || ln -s busybox "bin/$command"
done
cat > entrypoint.sh <<'END'
#!/bin/sh
set -e
if [ "${1#-}" != "$1" ] || [ -z "$(command -v "$1")" ]; then
    set -- curl "$@"
fi
exec "$@"
END
chmod 755 entrypoint.sh
mkdir -p etc/ssl/certs
find usr/share/ca-certificates -name '*.crt' -exec cat {} + > etc/ssl/certs/ca-certificates.crt
rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/info var/lib/dpkg var/lib/apt var/cache/apt
"#;

/// Makes the archive in a folder, unless the one that is there was made by the same recipe; half a minute and the
/// command `mmdebstrap`. Returns whether it had to be made.
pub fn make(folder: &Path) -> Result<bool> {
    let recipe = format!("{RELEASE} {PACKAGES}\n{HOOK}");
    let recipe_path = folder.join(RECIPE);
    let archive = folder.join(ARCHIVE);
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Of two that want it at once one makes it, and the other waits. The lock goes with whoever holds it.
    let lock = File::create(folder.join("lock")).context("cannot make a lock")?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_file, errno)| errno)
        .context("cannot lock the folder of the images")?;
    if archive.is_file() && fs::read_to_string(&recipe_path).is_ok_and(|found| found == recipe) {
        return Ok(false);
    }
    let hook = folder.join("hook.sh");
    let unfinished = folder.join("unfinished.tar");
    let made = mmdebstrap(&hook, &unfinished).and_then(|()| {
        fs::rename(&unfinished, &archive).with_context(|| format!("cannot write {}", archive.display()))?;
        // After the archive: killed in between, it is made once more.
        fs::write(&recipe_path, &recipe).with_context(|| format!("cannot write {}", recipe_path.display()))
    });
    for path in [&hook, &unfinished] {
        crate::remains::ignore_absent(fs::remove_file(path))
            .with_context(|| format!("cannot remove {}", path.display()))?;
    }
    made.map(|()| true)
}

fn mmdebstrap(hook: &Path, archive: &Path) -> Result<()> {
    fs::write(hook, HOOK).with_context(|| format!("cannot write {}", hook.display()))?;
    fs::set_permissions(hook, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", hook.display()))?;
    output(
        Command::new("mmdebstrap")
            .args(["--quiet", "--variant=extract"])
            .arg(format!("--include={PACKAGES}"))
            .arg(format!("--extract-hook={}", hook.display()))
            .arg(RELEASE)
            .arg(archive),
    )?;
    Ok(())
}

/// Whether a Docker has an image of this name.
#[must_use]
pub fn is_present(docker: &DockerClient, image: &Image) -> bool {
    docker.run(&["image", "inspect", image.name]).is_ok()
}

/// Imports an image out of the archive that [`make`] left in a folder, under its name.
pub fn import(docker: &DockerClient, folder: &Path, image: &Image) -> Result<()> {
    let archive: PathBuf = folder.join(ARCHIVE);
    let archive = archive.display().to_string();
    let mut arguments = vec!["import"];
    for change in image.changes {
        arguments.extend(["--change", change]);
    }
    arguments.extend([&archive, image.name]);
    docker
        .run(&arguments)
        .with_context(|| format!("cannot import {}", image.name))?;
    Ok(())
}

/// Imports those images that a Docker does not have.
pub fn import_missing(docker: &DockerClient, folder: &Path) -> Result<()> {
    for image in IMAGES {
        if !is_present(docker, image) {
            import(docker, folder, image)?;
        }
    }
    Ok(())
}
