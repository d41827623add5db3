//! Names of images, and how far a pull is.

use std::collections::BTreeMap;

use bollard::models::CreateImageInfo;

/// What Docker's pull takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) repository: String,
    /// A tag, or a digest.
    pub(super) tag: String,
}

/// Separates an image's tag or digest. One without is `latest`: Docker would pull all tags.
pub(super) fn parse(image: &str) -> Reference {
    let image = image.trim();
    let of = |repository: &str, tag: &str| Reference {
        repository: repository.to_owned(),
        tag: tag.to_owned(),
    };
    if let Some((repository, digest)) = image.split_once('@') {
        return of(repository, digest);
    }
    match image.rsplit_once(':') {
        // What follows the colon of a registry's port has a slash.
        Some((repository, tag)) if !tag.contains('/') => of(repository, tag),
        Some(_) | None => of(image, "latest"),
    }
}

/// The image in the form that Docker's create takes.
pub(super) fn normal(image: &str) -> String {
    let Reference { repository, tag } = parse(image);
    let separator = if tag.contains(':') { '@' } else { ':' };
    format!("{repository}{separator}{tag}")
}

/// Bytes of each layer: those that are here, and all.
#[derive(Debug, Default)]
pub(super) struct Layers {
    layers: BTreeMap<String, (i64, i64)>,
    said: String,
}

impl Layers {
    /// Takes a step, and says how far it is when that is something new to a person.
    pub(super) fn take(&mut self, step: &CreateImageInfo) -> Option<String> {
        let id = step.id.clone()?;
        let detail = step.progress_detail.as_ref();
        let current = detail.and_then(|detail| detail.current).unwrap_or_default();
        let total = detail.and_then(|detail| detail.total).unwrap_or_default();
        if total <= 0 {
            return None;
        }
        self.layers.insert(id, (current, total));
        let (current, total) = self
            .layers
            .values()
            .fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        let said = format!("pulling the image: {} of {} MB", tens(current), tens(total));
        if said == self.said {
            return None;
        }
        self.said.clone_from(&said);
        Some(said)
    }
}

/// Megabytes in steps of ten, and single ones below: each step is a report.
fn tens(bytes: i64) -> i64 {
    let megabytes = bytes / 1_000_000;
    if megabytes < 10 {
        megabytes
    } else {
        megabytes / 10 * 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_taken_apart_as_docker_does() {
        let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let with_digest = format!("ghcr.io/a/b@{digest}");
        let cases = [
            ("nginx", "nginx", "latest", "nginx:latest"),
            ("nginx:1.25", "nginx", "1.25", "nginx:1.25"),
            (
                "docker.io/library/nginx:latest",
                "docker.io/library/nginx",
                "latest",
                "docker.io/library/nginx:latest",
            ),
            (
                "127.0.0.1:5000/x",
                "127.0.0.1:5000/x",
                "latest",
                "127.0.0.1:5000/x:latest",
            ),
            (
                "127.0.0.1:5000/x:2",
                "127.0.0.1:5000/x",
                "2",
                "127.0.0.1:5000/x:2",
            ),
            (&with_digest, "ghcr.io/a/b", digest, &with_digest),
            (" nginx ", "nginx", "latest", "nginx:latest"),
        ];
        for (image, repository, tag, whole) in cases {
            let reference = parse(image);
            assert_eq!(
                (reference.repository.as_str(), reference.tag.as_str()),
                (repository, tag)
            );
            assert_eq!(normal(image), whole);
        }
    }
}
