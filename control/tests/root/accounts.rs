//! Users, passwords and tokens.

use serde_json::json;

use crate::fixture::Root;

#[tokio::test]
async fn admin_logs_in_and_changes_the_password() {
    let folder = tempfile::tempdir().expect("folder");
    let mut root = Root::start(folder.path());
    let admin = root.admin().await;
    let user = admin.read("/api/user/Admin").await;
    assert_eq!(
        (user["name"].as_str(), user["roles"][0].as_str()),
        (Some("Admin"), Some("Admin"))
    );
    assert!(
        user["_id"]["$oid"].as_str().is_some_and(|id| id.len() == 24),
        "{user}"
    );
    assert!(!user.to_string().contains("argon2"), "no hash is shown: {user}");

    let wrong = admin
        .post(
            "/api/user/Admin",
            &json!({"oldPassword": "x", "newPassword": "y"}),
        )
        .await;
    assert_eq!(
        (wrong.status, wrong.body["path"].as_str()),
        (400, Some("oldPassword"))
    );
    let same = admin
        .post(
            "/api/user/Admin",
            &json!({"oldPassword": "Admin", "newPassword": "Admin"}),
        )
        .await;
    assert_eq!(
        (same.status, same.body["path"].as_str()),
        (400, Some("newPassword"))
    );
    let login = json!({"username": "Admin", "password": "Admin"});
    let login = root.anonymous().post("/api/auth/login", &login).await;
    let refresh = login.body["refresh_token"].as_str().expect("token").to_owned();
    let done = admin
        .post(
            "/api/user/Admin/",
            &json!({"oldPassword": "Admin", "newPassword": "secret"}),
        )
        .await;
    assert_eq!((done.status, &done.body), (200, &json!({})));

    root.kill();
    let root = Root::start(folder.path());
    let old = root
        .anonymous()
        .post(
            "/api/auth/login",
            &json!({"username": "Admin", "password": "Admin"}),
        )
        .await;
    assert_eq!(old.status, 401);
    root.login("Admin", "secret").await;
    // The signing secret is the same, so the token from before is good still.
    let mut known = root.anonymous();
    known.token.clone_from(&admin.token);
    assert_eq!(known.get("/api/user/Admin").await.status, 200);
    // But who knew the old password does not go on for a month.
    known.token.clone_from(&refresh);
    let old = known.send("POST", "/api/auth/refresh", None).await;
    assert_eq!(old.status, 401, "{old:?}");
    assert!(root.stop().success());
}

#[tokio::test]
async fn tokens_are_refused_with_a_sentence_each() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let mut client = root.anonymous();
    let login = client
        .post(
            "/api/auth/login/",
            &json!({"username": "Admin", "password": "Admin"}),
        )
        .await;
    let token = login.body["token"].as_str().expect("token").to_owned();
    let refresh = login.body["refresh_token"].as_str().expect("token").to_owned();

    let path = "/api/applications/";
    let none = client.get(path).await;
    assert_eq!((none.status, none.body["code"].as_u64()), (401, Some(401)));
    assert!(
        none.body["message"]
            .as_str()
            .is_some_and(|text| text.contains("no token")),
        "{none:?}"
    );
    for (token, sentence) in [
        ("garbage", "not a token of this root"),
        (refresh.as_str(), "this is a refresh token"),
        // Signed, but with another secret.
        (
            "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJBZG1pbiIsImV4cCI6OTk5OTk5OTk5OX0.\
             sT3zZ1qJkq0WQyqkTt4XrhGqYkYvQ0m3k9T1b8i0d8w",
            "not a token of this root",
        ),
    ] {
        token.clone_into(&mut client.token);
        let answer = client.get(path).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        assert!(
            answer.body["message"]
                .as_str()
                .is_some_and(|text| text.contains(sentence)),
            "{answer:?}"
        );
    }
    client.token.clear();
    let answer = client
        .try_send("GET", path, &[("Authorization", "Basic QWRtaW4=")], Vec::new())
        .await
        .expect("an answer");
    assert_eq!(answer.status, 401);
    assert!(
        answer.body["message"]
            .as_str()
            .is_some_and(|text| text.contains("Bearer")),
        "{answer:?}"
    );

    client.token.clone_from(&refresh);
    let fresh = client.send("POST", "/api/auth/refresh", None).await;
    assert_eq!(fresh.status, 200, "{fresh:?}");
    client.token = fresh.body["token"].as_str().expect("token").to_owned();
    assert_eq!(client.get(path).await.status, 200);
    client.token = token;
    let wrong = client.send("POST", "/api/auth/refresh/", None).await;
    assert_eq!(wrong.status, 401, "{wrong:?}");
}

#[tokio::test]
async fn wrong_logins_and_registrations_are_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let nobody = root.anonymous();
    for (body, status, path) in [
        (json!({"username": "Admin", "password": "wrong"}), 401, ""),
        (json!({"username": "Nobody", "password": "Admin"}), 401, ""),
        (json!({"username": "", "password": ""}), 401, ""),
        (json!({"username": "Admin"}), 422, "password"),
        (json!({"username": 1, "password": "x"}), 422, "username"),
        (json!([]), 422, ""),
    ] {
        let answer = nobody.post("/api/auth/login", &body).await;
        assert_eq!(
            (answer.status, answer.body["path"].as_str()),
            (status, Some(path)),
            "{body}: {answer:?}"
        );
    }

    let admin = root.admin().await;
    let register =
        json!({"name": "anna", "password": "p", "email": "a@b", "roles": ["Application_Provider"]});
    let made = admin.post("/api/auth/register", &register).await;
    assert_eq!(
        (made.status, made.body["name"].as_str()),
        (200, Some("anna")),
        "{made:?}"
    );
    let twice = admin.post("/api/auth/register", &register).await;
    assert_eq!((twice.status, twice.body["path"].as_str()), (409, Some("name")));
    for (name, password, roles, path) in [
        ("", "p", json!([]), "name"),
        ("a b", "p", json!([]), "name"),
        ("b", "", json!([]), "password"),
        ("b", "p", json!(["King"]), "roles[0]"),
    ] {
        let body = json!({"name": name, "password": password, "roles": roles});
        let answer = admin.post("/api/auth/register", &body).await;
        assert_eq!(
            (answer.status, answer.body["path"].as_str()),
            (422, Some(path)),
            "{answer:?}"
        );
    }
    let anna = root.login("anna", "p").await;
    assert_eq!(
        anna.read("/api/permission/anna").await,
        json!({"roles": ["Application_Provider"]})
    );
    assert_eq!(anna.post("/api/auth/register", &register).await.status, 403);
    assert_eq!(anna.get("/api/users/").await.status, 403);
    assert_eq!(
        anna.get("/api/user/Admin").await.status,
        404,
        "other users do not exist for her"
    );
    assert_eq!(
        admin.read("/api/users").await.as_array().expect("a list").len(),
        2
    );
}
