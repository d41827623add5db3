//! Applications and services.

use serde_json::{Value, json};

use crate::fixture::{Root, descriptor, service, texts};

/// The user's own document.
const SEED: &str = include_str!("../../protocol/tests/descriptors/seed-client-server.json");

#[tokio::test]
async fn the_users_own_document_is_taken_as_it_is() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let seed: Value = serde_json::from_str(SEED).expect("seed");
    let made = admin.post("/api/application", &seed).await;
    assert_eq!(made.status, 200, "{made:?}");
    let application = &made.body[0];
    let id = application["applicationID"].as_str().expect("id");
    assert_eq!(application["_id"]["$oid"], id);
    assert_eq!((id.len(), &application["userId"]), (24, &json!("Admin")));
    assert_eq!(
        application["application_desc"],
        "Simple demo with curl client and Nginx server"
    );
    let [curl, nginx] = &texts(&application["microservices"])[..] else {
        panic!("two services: {application}");
    };

    let document = admin.read(&format!("/api/service/{nginx}")).await;
    for (key, value) in [
        ("microserviceID", json!(nginx)),
        ("job_name", json!("clientsrvr.test.nginx.test")),
        ("applicationID", json!(id)),
        ("app_name", json!("clientsrvr")),
        ("app_ns", json!("test")),
        ("service_name", json!("nginx")),
        ("service_ns", json!("test")),
        ("microservice_name", json!("nginx")),
        ("image", json!("docker.io/library/nginx:latest")),
        ("code", json!("docker.io/library/nginx:latest")),
        ("virtualization", json!("docker")),
        ("port", json!("80:80/tcp")),
        ("RR_ip", json!("10.30.55.55")),
        ("RR_ip_v6", json!("fdff:2000::3737")),
        ("next_instance_progressive_number", json!(0)),
        ("instance_list", json!([])),
        ("warnings", json!([])),
        ("_id", json!({"$oid": nginx})),
    ] {
        assert_eq!(document[key], value, "{key}");
    }
    assert_eq!(document.get("status"), None, "absent until the first wish");
    let address = admin.read(&format!("/api/service/{curl}/")).await["RR_ip"].clone();
    assert!(
        address
            .as_str()
            .is_some_and(|address| address.starts_with("10.30.")),
        "{address}"
    );

    let user = admin.read("/api/user/Admin").await["_id"]["$oid"]
        .as_str()
        .expect("id")
        .to_owned();
    for path in [
        "/api/applications",
        "/api/applications/",
        "/api/aplications",
        "/api/aplications/",
        "/api/aplications/Admin",
        &format!("/api/applications/{user}"),
        &format!("/api/aplications/{user}/"),
    ] {
        assert_eq!(admin.read(path).await, made.body, "{path}");
    }
    assert_eq!(admin.read(&format!("/api/application/{id}/")).await, *application);
    for path in [
        "/api/services",
        "/api/services/",
        &format!("/api/services/{id}"),
        &format!("/api/services/{id}/"),
    ] {
        assert_eq!(
            admin.read(path).await.as_array().expect("a list").len(),
            2,
            "{path}"
        );
    }
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let holder = json!({"addresses": {"rr_ip": "10.30.9.9"}});
    admin
        .create(&descriptor("first", &[service("one", holder.clone())]))
        .await;
    let before = (
        admin.read("/api/applications").await,
        admin.read("/api/services").await,
    );

    let wrong_port = descriptor(
        "second",
        &[service("one", json!({})), service("two", json!({"port": "x"}))],
    );
    let cases = [
        (
            wrong_port,
            422,
            "applications[0].microservices[1].port",
            "not a number",
        ),
        (
            // The second service collides, so the first is not made either.
            descriptor(
                "second",
                &[service("free", json!({})), service("two", holder.clone())],
            ),
            409,
            "applications[0].microservices[1].addresses.rr_ip",
            "10.30.9.9 belongs to service first.test.one.test already",
        ),
        (
            descriptor(
                "second",
                &[
                    service("a", json!({"addresses": {"rr_ip": "10.30.8.8"}})),
                    service("b", json!({"addresses": {"rr_ip": "10.30.8.8"}})),
                ],
            ),
            409,
            "applications[0].microservices[1].addresses.rr_ip",
            "second.test.a.test",
        ),
        (
            descriptor(
                "second",
                &[service("one", json!({"addresses": {"closest_ip": "10.30.9.9"}}))],
            ),
            409,
            "applications[0].microservices[0].addresses.closest_ip",
            "10.30.9.9 belongs to service first.test.one.test already",
        ),
        (
            // Of the same service.
            descriptor(
                "second",
                &[service(
                    "one",
                    json!({"addresses": {"rr_ip": "10.30.8.8", "closest_ip": "10.30.8.8"}}),
                )],
            ),
            422,
            "applications[0].microservices[0].addresses.closest_ip",
            "is 10.30.8.8, as rr_ip is",
        ),
        (
            // What one chooses is not given to another that leaves it to the root.
            descriptor(
                "second",
                &[
                    service("a", json!({"addresses": {"closest_ip": "auto"}})),
                    service("b", json!({"addresses": {"closest_ip": "10.30.9.9"}})),
                ],
            ),
            409,
            "applications[0].microservices[1].addresses.closest_ip",
            "10.30.9.9 belongs to",
        ),
        (
            descriptor("first", &[]),
            409,
            "applications[0].application_name",
            "exists already",
        ),
        (
            descriptor(
                "second",
                &[service("one", json!({"addresses": {"rr_ip": "192.168.178.4"}}))],
            ),
            422,
            "applications[0].microservices[0].addresses.rr_ip",
            "not in 10.30.0.0/16",
        ),
    ];
    for (document, status, path, message) in cases {
        let answer = admin.post("/api/application", &document).await;
        assert_eq!(
            (answer.status, answer.body["path"].as_str()),
            (status, Some(path)),
            "{answer:?}"
        );
        assert!(
            answer.body["message"]
                .as_str()
                .is_some_and(|text| text.contains(message)),
            "{answer:?}"
        );
        let after = (
            admin.read("/api/applications").await,
            admin.read("/api/services").await,
        );
        assert_eq!(before, after, "{path}");
    }
    // What was refused is free.
    admin
        .create(&descriptor(
            "second",
            &[service("a", json!({"addresses": {"rr_ip": "10.30.8.8"}}))],
        ))
        .await;
}

#[tokio::test]
async fn the_closest_instance_has_an_address_of_its_own_until_the_service_is_gone() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    let wishes = [
        service("auto", json!({"addresses": {"closest_ip": "auto"}})),
        // The first free one, which the service before it must not be given.
        service(
            "given",
            json!({"addresses": {"closest_ip": "10.30.0.1", "rr_ip": "10.30.0.2"}}),
        ),
        service("none", json!({})),
    ];
    let ids = admin.create(&descriptor("app", &wishes)).await;
    let mut documents = Vec::new();
    for id in &ids {
        documents.push(admin.read(&format!("/api/service/{id}")).await);
    }
    assert_eq!(documents[1]["closest_ip"], "10.30.0.1");
    assert_eq!(documents[1]["RR_ip"], "10.30.0.2");
    assert_eq!(documents[2].get("closest_ip"), None);
    let auto = documents[0]["closest_ip"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert!(auto.starts_with("10.30."), "{auto}");
    assert_ne!(documents[0]["RR_ip"], *auto);
    assert!(documents.iter().all(|document| document["warnings"] == json!([])));

    let wish = service("one", json!({"addresses": {"rr_ip": auto}}));
    let taken = admin
        .post(
            "/api/application",
            &descriptor("other", std::slice::from_ref(&wish)),
        )
        .await;
    assert_eq!(taken.status, 409, "{taken:?}");
    let deleted = admin.delete(&format!("/api/service/{}", ids[0])).await;
    assert_eq!(deleted.status, 200, "{deleted:?}");
    admin.create(&descriptor("other", &[wish])).await;
}

#[tokio::test]
async fn services_are_added_and_taken_away() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    admin.create(&descriptor("app", &[])).await;
    let id = admin.read("/api/applications").await[0]["applicationID"]
        .as_str()
        .expect("id")
        .to_owned();

    let mut document = descriptor(
        "app",
        &[service("one", json!({"storage": 5})), service("two", json!({}))],
    );
    let missing = admin.post("/api/service/", &document).await;
    assert_eq!(
        (missing.status, missing.body["path"].as_str()),
        (422, Some("applications[0].applicationID"))
    );
    document["applications"][0]["applicationID"] = json!(id);
    let added = admin.post("/api/service/", &document).await;
    assert_eq!(added.status, 200, "{added:?}");
    let services = texts(&admin.read(&format!("/api/application/{id}")).await["microservices"]);
    assert_eq!(added.body["job_id"], services[1]);
    assert_eq!(added.body["deployed_services"][0]["service_name"], "one");
    assert_eq!(added.body["failed_services"], json!([]));
    let one = admin.read(&format!("/api/service/{}", services[0])).await;
    assert_eq!(one["warnings"][0]["message"], "storage 5 is not acted on");
    assert!(
        one["status_detail"]
            .as_str()
            .is_some_and(|text| text.contains("storage 5")),
        "{one}"
    );

    assert_eq!(
        admin.post("/api/service", &document).await.status,
        409,
        "both exist"
    );
    document["applications"][0]["microservices"] = json!([]);
    assert_eq!(admin.post("/api/service", &document).await.status, 422);
    document["applications"] = json!([]);
    assert_eq!(admin.post("/api/service", &document).await.status, 422);
    let elsewhere = json!({"applicationID": "000000000000000000000000", "application_name": "app",
        "application_namespace": "test", "microservices": [service("x", json!({}))]});
    document["applications"] = json!([elsewhere]);
    assert_eq!(admin.post("/api/service", &document).await.status, 404);

    let gone = admin.delete(&format!("/api/service/{}", services[0])).await;
    assert_eq!(
        (gone.status, &gone.body),
        (200, &json!({"message": "Job deleted"}))
    );
    assert_eq!(
        admin.get(&format!("/api/service/{}", services[0])).await.status,
        404
    );
    assert_eq!(
        texts(&admin.read(&format!("/api/application/{id}")).await["microservices"]),
        services[1..]
    );

    let path = format!("/api/application/{id}");
    let put = |body: Value| {
        let (admin, path) = (admin.clone(), path.clone());
        async move { admin.send("PUT", &path, Some(&body)).await }
    };
    assert_eq!(
        put(json!({"application_desc": "new"})).await.body,
        json!({"message": "Application is updated"})
    );
    assert_eq!(admin.read(&path).await["application_desc"], "new");
    assert_eq!(put(json!({"application_name": "other"})).await.status, 409);
    assert_eq!(put(json!({"application_desc": 1})).await.status, 422);
    let gone = admin.delete(&path).await;
    assert_eq!(
        (gone.status, &gone.body),
        (200, &json!({"message": "Application Deleted"}))
    );
    assert_eq!(admin.read("/api/applications").await, json!([]));
    assert_eq!(admin.read("/api/services").await, json!([]));
}

#[tokio::test]
async fn what_belongs_to_others_does_not_exist() {
    let folder = tempfile::tempdir().expect("folder");
    let root = Root::start(folder.path());
    let admin = root.admin().await;
    for name in ["anna", "bert"] {
        let body = json!({"name": name, "password": name});
        assert_eq!(admin.post("/api/auth/register", &body).await.status, 200);
    }
    let anna = root.login("anna", "anna").await;
    let bert = root.login("bert", "bert").await;
    let service_id = anna
        .create(&descriptor("app", &[service("one", json!({}))]))
        .await
        .remove(0);
    let id = anna.read("/api/applications/anna").await[0]["applicationID"]
        .as_str()
        .expect("id")
        .to_owned();

    for path in [
        format!("/api/application/{id}"),
        format!("/api/service/{service_id}"),
        format!("/api/services/{id}"),
        "/api/applications/anna".to_owned(),
        "/api/user/anna".to_owned(),
    ] {
        assert_eq!(bert.get(&path).await.status, 404, "{path}");
        assert_eq!(admin.get(&path).await.status, 200, "{path}");
    }
    for path in ["/api/applications", "/api/services"] {
        assert_eq!(bert.get(path).await.status, 403, "{path}");
    }
    let takeover = json!({"application_desc": "mine"});
    assert_eq!(
        bert.send("PUT", &format!("/api/application/{id}"), Some(&takeover))
            .await
            .status,
        404
    );
    assert_eq!(bert.delete(&format!("/api/application/{id}")).await.status, 404);
    assert_eq!(
        bert.delete(&format!("/api/service/{service_id}")).await.status,
        404
    );
    assert_eq!(
        bert.send("POST", &format!("/api/service/{service_id}/instance"), None)
            .await
            .status,
        404
    );
    assert_eq!(
        bert.delete(&format!("/api/service/{service_id}/instance/-1"))
            .await
            .status,
        404
    );
    let mut document = descriptor("app", &[service("two", json!({}))]);
    assert_eq!(
        bert.post("/api/application", &document).await.status,
        409,
        "names are the same for everybody"
    );
    document["applications"][0]["applicationID"] = json!(id);
    assert_eq!(bert.post("/api/service", &document).await.status, 404);
    assert_eq!(
        anna.read("/api/applications/anna").await[0]["application_desc"],
        "for a test"
    );
    assert_eq!(bert.create(&descriptor("own", &[])).await, [""; 0]);
}
