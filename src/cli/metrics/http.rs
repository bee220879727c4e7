//! One request, and its response.

use std::fmt;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// Longest head of a request.
const HEAD_MAX: usize = 8192;
/// Most header fields of a request.
const FIELDS_MAX: usize = 64;

const PLAIN: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the response to the request that begins with `bytes`, or `None` if its head is not complete.
pub(super) fn respond(bytes: &[u8], registry: &Registry, is_draining: bool) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        // Its length decides, and not in which pieces it has arrived.
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => {}
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return None,
        _ => return Some(response("400 Bad Request", PLAIN, "cannot parse the request\n")),
    }
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    if !["/metrics", "/healthz"].contains(&path) {
        return Some(response("404 Not Found", PLAIN, "see /metrics and /healthz\n"));
    }
    if request.method != Some("GET") {
        return Some(response("405 Method Not Allowed\r\nAllow: GET", PLAIN, "use GET\n"));
    }
    Some(match (path, is_draining) {
        ("/healthz", false) => response("200 OK", PLAIN, "ok\n"),
        ("/healthz", true) => response("503 Service Unavailable", PLAIN, "shutting down\n"),
        _ => metrics(registry, prefers_openmetrics(request.headers))
            .unwrap_or_else(|fmt::Error| response("500 Internal Server Error", PLAIN, "cannot encode the metrics\n")),
    })
}

fn metrics(registry: &Registry, is_openmetrics: bool) -> Result<Vec<u8>, fmt::Error> {
    let mut body = String::new();
    let content_type = if is_openmetrics {
        text::encode(&mut body, registry)?;
        OPENMETRICS
    } else {
        prometheus_text::encode(&mut body, registry)?;
        prometheus_text::CONTENT_TYPE
    };
    Ok(response("200 OK", content_type, &body))
}

fn response(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Returns whether the client accepts `OpenMetrics`, and not the older format rather (RFC 9110, 12.5.1).
fn prefers_openmetrics(fields: &[httparse::Header<'_>]) -> bool {
    let (mut openmetrics, mut plain) = (0.0_f32, 0.0_f32);
    for field in fields.iter().filter(|field| field.name.eq_ignore_ascii_case("accept")) {
        for range in String::from_utf8_lossy(field.value).to_ascii_lowercase().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let weight = match parts.next() {
                Some("application/openmetrics-text") => &mut openmetrics,
                Some("text/plain") => &mut plain,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            *weight = weight.max(quality);
        }
    }
    openmetrics > 0.0 && openmetrics >= plain
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn status(request: &[u8]) -> Option<String> {
        let response = String::from_utf8(respond(request, &Registry::default(), false)?).unwrap();
        Some(response.split(' ').nth(1).unwrap().to_owned())
    }

    #[test]
    fn a_request_has_its_status() {
        for (request, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", "200"),
            ("GET /metrics?name=x HTTP/1.0\r\n\r\n", "200"),
            ("GET /healthz HTTP/1.1\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
            ("POST /other HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", "405"),
            ("HEAD /healthz HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("\x16\x03\x01\x02", "400"),
        ] {
            assert_eq!(status(request.as_bytes()).as_deref(), Some(expected), "{request}");
        }
    }

    #[test]
    fn a_head_that_is_not_complete_waits_up_to_its_limit() {
        let mut head = b"GET /metrics HTTP/1.1\r\nX: ".to_vec();
        assert_eq!(status(&head), None);
        head.resize(HEAD_MAX - 1, b'x');
        assert_eq!(status(&head), None);
        head.push(b'x');
        assert_eq!(status(&head).as_deref(), Some("400"));
        for (length, expected) in [(HEAD_MAX, "200"), (HEAD_MAX + 1, "400")] {
            head.resize(length - 4, b'x');
            let whole = [&head[..], b"\r\n\r\n"].concat();
            assert_eq!(status(&whole).as_deref(), Some(expected), "{length} bytes");
        }
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(FIELDS_MAX + 1));
        assert_eq!(status(many.as_bytes()).as_deref(), Some("400"));
    }

    #[test]
    fn openmetrics_is_sent_to_a_client_that_prefers_it() {
        let prefers =
            |accept: &str| prefers_openmetrics(&[httparse::Header { name: "Accept", value: accept.as_bytes() }]);
        for accept in [
            "application/openmetrics-text",
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "text/plain;q=0.4, Application/OpenMetrics-Text; version=1.0.0; q=0.5",
        ] {
            assert!(prefers(accept), "{accept}");
        }
        for accept in [
            "*/*",
            "",
            "text/plain",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.3,text/plain;q=0.5",
        ] {
            assert!(!prefers(accept), "{accept}");
        }
    }
}
