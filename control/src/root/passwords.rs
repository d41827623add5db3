//! Passwords, as argon2id hashes.

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use rand::RngCore as _;
use tokio::sync::Semaphore;

use super::problem::Problem;

/// KiB, rounds and lanes: of the equally strong settings that OWASP names, the one with the least memory.
const COST: (u32, u32, u32) = (7 * 1024, 5, 1);
/// One at a time, so that a flood of logins costs neither much memory nor all cores.
static HASHING: Semaphore = Semaphore::const_new(1);

/// Hashes a password with a salt of its own.
pub async fn hash(password: String) -> Result<String, Problem> {
    calculate(move |argon2| {
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        let salt = SaltString::encode_b64(&bytes)?;
        Ok(argon2.hash_password(password.as_bytes(), &salt)?.to_string())
    })
    .await
}

/// Whether a password is the one of a hash. Without a hash it never is, and takes as long.
pub async fn verify(password: String, hash: Option<String>) -> Result<bool, Problem> {
    let Some(hash) = hash else {
        self::hash(password).await?;
        return Ok(false);
    };
    calculate(move |argon2| {
        let hash = PasswordHash::new(&hash)?;
        Ok(argon2.verify_password(password.as_bytes(), &hash).is_ok())
    })
    .await
}

/// Calculates away from the threads that serve requests.
async fn calculate<T: Send + 'static>(
    calculation: impl FnOnce(&Argon2<'_>) -> Result<T, argon2::password_hash::Error> + Send + 'static,
) -> Result<T, Problem> {
    let permit = HASHING.acquire().await;
    let (memory, rounds, lanes) = COST;
    let params = Params::new(memory, rounds, lanes, None).map_err(|error| Problem::internal(&error))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let calculated = tokio::task::spawn_blocking(move || calculation(&argon2)).await;
    drop(permit);
    match calculated {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Problem::internal(&error)),
        Err(error) => Err(Problem::internal(&error)),
    }
}
