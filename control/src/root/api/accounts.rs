//! Users and their tokens.

use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Problem;
use super::extract::{Admin, Caller, Json, Refreshing, Segments};
use crate::root::records::User;
use crate::root::tokens::Kind;
use crate::root::{Root, documents, id, passwords};

/// Most characters of a name or a password.
const LONGEST: usize = 256;

pub async fn login(State(root): State<Root>, body: Json) -> Result<axum::Json<Value>, Problem> {
    let (name, password) = (
        body.text("username")?.to_owned(),
        body.text("password")?.to_owned(),
    );
    let user = root.read(|state, _| state.users.get(&name).cloned());
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let right = password.len() <= LONGEST && passwords::verify(password, hash).await?;
    let Some(user) = user.filter(|_| right) else {
        return Err(Problem::unauthorized("the user name or the password is wrong"));
    };
    Ok(axum::Json(json!({
        "token": root.0.tokens.issue(&user, Kind::Access)?,
        "refresh_token": root.0.tokens.issue(&user, Kind::Refresh)?,
    })))
}

pub async fn refresh(
    State(root): State<Root>,
    Refreshing(user): Refreshing,
) -> Result<axum::Json<Value>, Problem> {
    Ok(axum::Json(
        json!({ "token": root.0.tokens.issue(&user, Kind::Access)? }),
    ))
}

pub async fn register(State(root): State<Root>, _: Admin, body: Json) -> Result<axum::Json<Value>, Problem> {
    let (name, password) = (body.text("name")?.to_owned(), body.text("password")?.to_owned());
    let unprocessable = |message: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Err(unprocessable("name has 1 to 64 letters, digits, dots, @, - and _").at("name"));
    }
    check_password(&password, "password")?;
    let email = match body.object()?.get("email") {
        Some(_) => body.text("email")?.to_owned(),
        None => String::new(),
    };
    let mut roles = Vec::new();
    for (index, role) in body
        .object()?
        .get("roles")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        match role.as_str().filter(|role| documents::ALL_ROLES.contains(role)) {
            Some(role) => roles.push(role.to_owned()),
            None => {
                let message = format!("{role} is not a role; there are {:?}", documents::ALL_ROLES);
                return Err(unprocessable(&message).at(format!("roles[{index}]")));
            }
        }
    }
    let password_hash = passwords::hash(password).await?;
    let user = User {
        id: id::new(),
        name,
        email,
        password_hash,
        created_at: documents::date(id::now()),
        roles,
    };
    let document = documents::user(&user);
    root.change(move |draft| {
        if draft.users.contains(&user.name) {
            return Err(Problem::conflict(format!("user {:?} exists already", user.name)).at("name"));
        }
        draft.users.put(user);
        Ok(())
    })
    .await?;
    Ok(axum::Json(document))
}

fn check_password(password: &str, path: &str) -> Result<(), Problem> {
    if password.is_empty() || password.len() > LONGEST {
        let message = format!("{path} has 1 to {LONGEST} bytes");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message).at(path));
    }
    Ok(())
}

/// Users see themselves, and Admin everybody; for others, other users do not exist.
fn find(root: &Root, caller: &User, name: &str) -> Result<User, Problem> {
    let user = root.read(|state, _| state.users.get(name).cloned());
    user.filter(|user| caller.is_admin() || caller.name == user.name)
        .ok_or_else(|| Problem::unknown("user", name))
}

pub async fn show(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(name): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    Ok(axum::Json(documents::user(&find(&root, &caller, &name)?)))
}

pub async fn permission(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(name): Segments<String>,
) -> Result<axum::Json<Value>, Problem> {
    Ok(axum::Json(json!({ "roles": find(&root, &caller, &name)?.roles })))
}

pub async fn list(State(root): State<Root>, _: Admin) -> axum::Json<Value> {
    axum::Json(root.read(|state, _| state.users.values().map(documents::user).collect()))
}

/// Only the user itself changes its password, and knows the old one.
pub async fn change_password(
    State(root): State<Root>,
    Caller(caller): Caller,
    Segments(name): Segments<String>,
    body: Json,
) -> Result<axum::Json<Value>, Problem> {
    if caller.name != name {
        return Err(Problem::unknown("user", &name));
    }
    let (old, new) = (
        body.text("oldPassword")?.to_owned(),
        body.text("newPassword")?.to_owned(),
    );
    check_password(&new, "newPassword")?;
    if !passwords::verify(old.clone(), Some(caller.password_hash.clone())).await? {
        return Err(Problem::bad_request("Old password is not valid!").at("oldPassword"));
    }
    if old == new {
        return Err(Problem::bad_request("Old password can't be the new password!").at("newPassword"));
    }
    let password_hash = passwords::hash(new).await?;
    root.change(move |draft| {
        let Some(mut user) = draft.users.get(&name).cloned() else {
            return Err(Problem::unknown("user", &name));
        };
        if user.password_hash != caller.password_hash {
            return Err(Problem::conflict("the password has been changed in the meantime"));
        }
        user.password_hash = password_hash;
        draft.users.put(user);
        Ok(())
    })
    .await?;
    Ok(axum::Json(json!({})))
}
