//! What a user shows instead of a password: signed tokens.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::id;
use super::problem::Problem;
use super::records::User;
use crate::store::{Condition, Store, StoreError, Transaction};

/// Seconds.
const ACCESS_LIFE: u64 = 600;
/// Seconds.
const REFRESH_LIFE: u64 = 30 * 24 * 3600;
const SECRET: &str = "secret/tokens";

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Shown with each request.
    Access,
    /// Exchanged for a new access token.
    Refresh,
}

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    pub fresh: bool,
    pub iat: u64,
    pub nbf: u64,
    pub exp: u64,
    pub jti: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Name of the user.
    pub sub: String,
    pub user: String,
    /// For clients to read; the root looks at the user's roles themselves.
    pub roles: Vec<String>,
    /// Which password the user had.
    pub password: String,
}

/// What a token says of the password that its user has; another password has another mark.
pub fn password_mark(user: &User) -> String {
    let digest = Sha256::digest(&user.password_hash);
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes and reads tokens.
pub struct Tokens {
    sign: EncodingKey,
    check: DecodingKey,
}

impl Tokens {
    /// With the secret that the store holds; it is made the first time.
    pub async fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let secret: String = match store.get(SECRET).await? {
            Some(record) => record.read()?,
            None => {
                let secret = format!(
                    "{:032x}{:032x}",
                    rand::rng().random::<u128>(),
                    rand::rng().random::<u128>()
                );
                let mut transaction = Transaction::new();
                transaction.put(SECRET, Condition::Absent, &secret)?;
                store.commit(transaction).await?;
                secret
            }
        };
        Ok(Self {
            sign: EncodingKey::from_secret(secret.as_bytes()),
            check: DecodingKey::from_secret(secret.as_bytes()),
        })
    }

    /// A token for a user.
    pub fn issue(&self, user: &User, kind: Kind) -> Result<String, Problem> {
        let now = id::now();
        let life = match kind {
            Kind::Access => ACCESS_LIFE,
            Kind::Refresh => REFRESH_LIFE,
        };
        let claims = Claims {
            fresh: false,
            iat: now,
            nbf: now,
            exp: now + life,
            jti: format!("{:032x}", rand::rng().random::<u128>()),
            kind,
            sub: user.name.clone(),
            user: user.name.clone(),
            roles: user.roles.clone(),
            password: password_mark(user),
        };
        self.sign(&claims)
    }

    fn sign(&self, claims: &Claims) -> Result<String, Problem> {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &self.sign)
            .map_err(|error| Problem::internal(&error))
    }

    /// What a token says, if it is one of ours, is still good and of this kind.
    pub fn read(&self, token: &str, wanted: Kind) -> Result<Claims, Problem> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.set_required_spec_claims(&["exp", "sub"]);
        let claims = match jsonwebtoken::decode::<Claims>(token, &self.check, &validation) {
            Ok(decoded) => decoded.claims,
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                return Err(Problem::unauthorized(
                    "the token has expired; log in again or refresh it",
                ));
            }
            Err(_) => {
                return Err(Problem::unauthorized(
                    "this is not a token of this root; log in at /api/auth/login",
                ));
            }
        };
        match (wanted, claims.kind) {
            (Kind::Access, Kind::Refresh) => Err(Problem::unauthorized(
                "this is a refresh token; exchange it for an access token at /api/auth/refresh",
            )),
            (Kind::Refresh, Kind::Access) => Err(Problem::unauthorized(
                "this is an access token; a refresh token belongs here",
            )),
            (Kind::Access, Kind::Access) | (Kind::Refresh, Kind::Refresh) => Ok(claims),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;

    fn user() -> User {
        User {
            id: id::new(),
            name: "Admin".to_owned(),
            email: String::new(),
            password_hash: String::new(),
            created_at: String::new(),
            roles: vec!["Admin".to_owned()],
        }
    }

    #[tokio::test]
    async fn tokens_are_good_for_their_time_and_purpose_and_over_restarts() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Embedded::open(folder.path()).expect("store");
        let tokens = Tokens::load(&store).await.expect("tokens");
        let access = tokens.issue(&user(), Kind::Access).expect("access");
        let refresh = tokens.issue(&user(), Kind::Refresh).expect("refresh");
        let claims = tokens.read(&access, Kind::Access).expect("good");
        assert_eq!((claims.sub.as_str(), claims.exp - claims.iat), ("Admin", 600));
        assert!(tokens.read(&access, Kind::Refresh).is_err());
        let problem = tokens.read(&refresh, Kind::Access).expect_err("refresh");
        assert!(problem.message.contains("refresh token"), "{problem}");

        let again = Tokens::load(&store).await.expect("the same secret");
        assert!(again.read(&access, Kind::Access).is_ok());

        let mut old = claims;
        old.exp = id::now() - 1;
        let problem = tokens
            .read(&tokens.sign(&old).expect("sign"), Kind::Access)
            .expect_err("old");
        assert!(problem.message.contains("expired"), "{problem}");
        for garbage in ["", "x", "a.b.c", &access[..access.len() - 2]] {
            let problem = tokens.read(garbage, Kind::Access).expect_err(garbage);
            assert!(problem.message.contains("not a token of this root"), "{problem}");
        }
    }
}
