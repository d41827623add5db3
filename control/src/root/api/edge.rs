//! What is done with each request and each answer, whatever the route.

use std::panic::AssertUnwindSafe;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_MAX_AGE, ALLOW, CONTENT_LENGTH, CONTENT_TYPE,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use protocol::network::ErrorBody;

use super::Problem;

/// Longest plain text of an error that is turned into a body.
const LONGEST_TEXT: usize = 4096;

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            code: self.status.as_u16(),
            status: self.status.canonical_reason().unwrap_or_default().to_owned(),
            message: self.message,
            path: self.path,
        };
        (self.status, axum::Json(body)).into_response()
    }
}

/// Answers what is asked before a request from another origin, turns a panic and every error of another form into the
/// one body, and lets pages of every origin read the answer.
pub async fn guard(request: Request, next: Next) -> Response {
    if request.method() == Method::OPTIONS {
        let mut response = StatusCode::NO_CONTENT.into_response();
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
        headers.insert(ALLOW, methods);
        headers.insert(
            ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("Authorization, Content-Type"),
        );
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
        return open_to_all(response);
    }
    let path = request.uri().path().to_owned();
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => one_form(response, path).await,
        Err(_panic) => Problem::internal(&format!("a panic while {path} was served")).into_response(),
    };
    open_to_all(response)
}

fn open_to_all(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// Errors that do not come from here are plain texts.
async fn one_form(response: Response, path: String) -> Response {
    let status = response.status();
    let is_json = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, LONGEST_TEXT).await.unwrap_or_default();
    let message = String::from_utf8_lossy(&text).into_owned();
    let mut replaced = Problem::new(status, message).at(path).into_response();
    for (name, value) in &parts.headers {
        if name != CONTENT_TYPE && name != CONTENT_LENGTH {
            replaced.headers_mut().insert(name, value.clone());
        }
    }
    replaced.map(Body::new)
}

#[cfg(test)]
mod tests {
    use std::future::IntoFuture;

    use axum::Router;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn panics() -> StatusCode {
        panic!("a test")
    }

    async fn plain() -> (StatusCode, &'static str) {
        (StatusCode::IM_A_TEAPOT, "short and stout")
    }

    #[tokio::test]
    async fn panics_and_plain_texts_become_the_one_body() {
        let router = Router::new()
            .route("/panics", get(panics))
            .route("/plain", get(plain))
            .layer(from_fn(guard));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let serving = tokio::spawn(axum::serve(listener, router).into_future());
        for (path, status, message) in [
            ("/panics", 500, "its log says why"),
            ("/plain", 418, "short and stout"),
        ] {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            let request = format!("GET {path} HTTP/1.1\r\nHost: root\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("send");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(head.contains("access-control-allow-origin: *"), "{answer}");
            let body: ErrorBody = serde_json::from_str(body).expect("the one body");
            assert_eq!(body.code, status);
            assert!(body.message.contains(message), "{body:?}");
        }
        serving.abort();
    }
}
