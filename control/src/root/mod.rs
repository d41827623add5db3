//! The root orchestrator: what people talk to, and what hands work to clusters.
//!
//! ```text
//!   api ──► change ──► store, then state ──► messages to clusters (session)
//!   clusters ──► change ──►        "                "
//!   api ──► read (state, live) ──► documents
//! ```
//!
//! [`State`] is what the store holds, in memory. It changes in one place only, [`Root::change`]: a change is drafted,
//! written as one transaction, applied, and only then said to anybody. A request that is refused, or that cannot be
//! written, has changed nothing. [`Live`] is what a restart may forget.

mod addresses;
pub mod api;
mod applications;
mod clusters;
mod documents;
mod id;
mod instances;
mod live;
mod passwords;
mod placement;
mod problem;
mod records;
mod state;
mod table;
mod tokens;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tracing::info;

pub use problem::Problem;

use self::live::Live;
use self::records::{ADMIN, User};
use self::state::{Draft, State};
use self::tokens::Tokens;
use crate::session::Timing;
use crate::session::server::Server;
use crate::store::{Store, StoreError};

/// A root orchestrator. A clone is the same one.
#[derive(Clone)]
pub struct Root(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    /// Held by whoever changes something, from the draft to the last message.
    writing: AsyncMutex<()>,
    state: RwLock<State>,
    live: Mutex<Live>,
    tokens: Tokens,
    server: Server,
    /// Seconds since 1970.
    started_at: f64,
}

impl Root {
    /// A root with what its store holds. An empty store gets the user `Admin` with the password `Admin`.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open(store: Arc<dyn Store>, timing: Timing) -> Result<Self, StoreError> {
        let state = State::load(store.as_ref()).await?;
        let tokens = Tokens::load(store.as_ref()).await?;
        let first_start = state.users.is_empty();
        let root = Self(Arc::new(Shared {
            store,
            writing: AsyncMutex::new(()),
            state: RwLock::new(state),
            live: Mutex::default(),
            tokens,
            server: Server::new(timing),
            started_at: id::timestamp(),
        }));
        if first_start {
            root.make_admin().await?;
        }
        Ok(root)
    }

    async fn make_admin(&self) -> Result<(), StoreError> {
        let Ok(password_hash) = passwords::hash("Admin".to_owned()).await else {
            return Err(StoreError::Closed);
        };
        let made = self
            .change(move |draft| {
                draft.users.put(User {
                    id: id::new(),
                    name: ADMIN.to_owned(),
                    email: String::new(),
                    password_hash,
                    created_at: documents::date(id::now()),
                    roles: documents::ALL_ROLES.map(str::to_owned).to_vec(),
                });
                Ok(())
            })
            .await;
        match made {
            Ok(()) => info!("user Admin is made with password Admin; change it"),
            // The log says why.
            Err(_problem) => return Err(StoreError::Closed),
        }
        Ok(())
    }

    /// Makes a change: `draft` says which, or why not. When this returns `Ok`, the change is durable and in effect.
    /// It is carried out to its end even if nobody waits for it any more.
    async fn change<T, F>(&self, draft: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&mut Draft<'_>) -> Result<T, Problem> + Send + 'static,
    {
        let root = self.clone();
        let changing = tokio::spawn(async move { root.change_now(draft).await });
        match changing.await {
            Ok(outcome) => outcome,
            Err(error) => Err(Problem::internal(&error)),
        }
    }

    async fn change_now<T, F>(&self, draft: F) -> Result<T, Problem>
    where
        F: FnOnce(&mut Draft<'_>) -> Result<T, Problem>,
    {
        let _writing = self.writing().await;
        let (answer, finished) = {
            let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
            let mut live = self.0.live.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changing = Draft::new(&state, &mut live);
            let answer = draft(&mut changing)?;
            (answer, changing.finish()?)
        };
        if !finished.transaction.is_empty() {
            self.0.store.commit(finished.transaction).await?;
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            state.apply(finished.batch);
        }
        for (cluster, message) in finished.messages {
            self.0.server.send(&cluster, message);
        }
        Ok(answer)
    }

    /// Waits until nobody changes anything, and keeps it so.
    async fn writing(&self) -> MutexGuard<'_, ()> {
        self.0.writing.lock().await
    }

    /// Looks at everything as it is now.
    fn read<T>(&self, look: impl FnOnce(&State, &Live) -> T) -> T {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let live = self.0.live.lock().unwrap_or_else(PoisonError::into_inner);
        look(&state, &live)
    }
}
