//! What runs instances. One implementation per kind of virtualization.

mod docker;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use protocol::job::{InstanceKey, Placement};
use serde::Serialize;

pub(crate) use docker::{Docker, DockerSettings, NetworkMode};

/// Why the runtime did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// It does not answer; it is asked again when it is back.
    #[error("{0}")]
    Away(String),
    /// The image is not on this node.
    #[error("the image is not on this node")]
    ImageMissing,
    /// Something has the container's name already.
    #[error("the name is taken")]
    NameTaken,
    /// There is no such container.
    #[error("there is no such container")]
    Gone,
    /// It refuses, with its own words.
    #[error("{0}")]
    Refused(String),
}

/// A container of this node, or something that has the name of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// `None` for a container that is not of this node.
    pub(crate) incarnation: Option<u64>,
    pub(crate) state: ContainerState,
    /// Whether it has the network that it was made with, or gets it when it is started.
    pub(crate) is_connected: bool,
    /// Where its output is kept, if it is a file.
    pub(crate) log_path: String,
    /// Bytes; 0 for no limit.
    pub(crate) memory_limit: u64,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// It has never run.
    Created,
    Running {
        /// Its first process; 0 when that is not known yet.
        pid: u32,
    },
    Paused,
    Exited {
        code: i64,
        /// Whether something in it was killed for want of memory.
        out_of_memory: bool,
        /// What the runtime has to say of it.
        error: String,
    },
    /// It is on its way out, or stuck there.
    Removing,
}

/// Something has happened to a container of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerEvent {
    pub(crate) key: InstanceKey,
    pub(crate) container: String,
    pub(crate) kind: ContainerEventKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerEventKind {
    /// It exists, or runs, from now on.
    Appeared,
    /// It does not exist, or does not run, any more.
    Disappeared,
}

/// A container of this node, by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// `None` when its labels do not say.
    pub(crate) key: Option<InstanceKey>,
    /// Whether it has the name that the instance's container has.
    pub(crate) is_named_so: bool,
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// Nanoseconds of processor time since it began.
    pub(crate) cpu_nanoseconds: u64,
    /// Bytes, without what the kernel could take back at once.
    pub(crate) memory: u64,
}

/// Takes what is said of a pull's progress.
pub(crate) type Progress<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Runs containers of one kind. Every call may be repeated.
#[async_trait]
pub(crate) trait Runtime: Send + Sync {
    /// Connects, again if need be.
    async fn connect(&self) -> Result<(), RuntimeError>;

    /// Gets an image from its registry.
    async fn pull(&self, image: &str, progress: Progress<'_>) -> Result<(), RuntimeError>;

    /// Makes the container of a placement; its id. It does not run yet.
    async fn create(&self, placement: &Placement) -> Result<String, RuntimeError>;

    /// Lets it run. Its network is there before its first instruction.
    async fn start(&self, container: &str) -> Result<(), RuntimeError>;

    /// Lets a paused one go on.
    async fn resume(&self, container: &str) -> Result<(), RuntimeError>;

    /// Asks it to end, and ends it after the time of grace. One that does not run is left so.
    async fn stop(&self, container: &str) -> Result<(), RuntimeError>;

    /// Removes it with everything that is its own, and returns when it is gone.
    async fn remove(&self, container: &str) -> Result<(), RuntimeError>;

    /// The container of an instance, if there is one.
    async fn find(&self, key: &InstanceKey) -> Result<Option<Container>, RuntimeError>;

    /// All containers of this node.
    async fn list(&self) -> Result<Vec<Listed>, RuntimeError>;

    /// What happens to the containers of this node from now on. The end of the stream means that the runtime is
    /// away.
    fn events(&self) -> BoxStream<'static, Result<ContainerEvent, RuntimeError>>;

    /// What a running container uses; `None` when that cannot be measured. Reads files only.
    fn usage(&self, container: &Container) -> Option<Usage>;

    /// The last of what it has written, at most `limit` bytes. Reads files only.
    fn logs(&self, container: &Container, limit: usize) -> String;

    /// Removes what is there for the node as a whole.
    async fn give_up(&self) -> Result<(), RuntimeError>;
}
