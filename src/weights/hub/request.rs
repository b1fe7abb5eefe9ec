//! One request to a hub, including redirects.
//!
//! Redirects are followed here rather than by the HTTP library, so that the token is sent to the hub's own origin
//! (scheme, host and port) and nowhere else, and no redirect leads from https to http.

use ureq::{
    Agent, Body,
    http::{Method, Request, Response, StatusCode, Uri, header},
};

use super::settings::Hub;
use crate::error::Error;

/// The largest number of redirects of one request.
const MOST_REDIRECTS: usize = 10;
/// The longest piece of a server's text in a message, in characters.
const SHOWN: usize = 120;

/// The reason why a request failed, or why its reply cannot be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another try may succeed: the network or the server had a temporary problem.
    Again(String),
    /// The server does not have the file.
    Absent,
    /// Another try would fail in the same way.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Scheme, host and port: a token is sent to one origin only.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an address; `None` if its scheme is neither http nor https.
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { scheme, host, port: uri.port_u16().unwrap_or(default) })
    }
}

/// Sends requests to one hub.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: Origin,
    token: Option<header::HeaderValue>,
}

impl Client {
    /// A client for the hub's endpoint, with its token and timeout.
    ///
    /// # Errors
    /// If the endpoint is not an http or https address, or the token cannot be sent.
    pub(super) fn new(hub: &Hub) -> Result<Self, Error> {
        let endpoint = hub.endpoint.parse().ok().and_then(|uri| Origin::of(&uri)).ok_or_else(|| {
            Error::input("the endpoint of the hub, HF_ENDPOINT, must be an address of http or https")
                .found(shown(&hub.endpoint))
                .hint("https://huggingface.co")
        })?;
        let token = hub.token.as_ref().map(|token| header::HeaderValue::try_from(format!("Bearer {token}")));
        let token = token.transpose().map_err(|_| {
            Error::input("the token for the hub has characters that cannot be sent")
                .hint("HF_TOKEN or its file holds the token and nothing else")
        })?;
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("sdshard/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(hub.timeout))
            .timeout_connect(Some(hub.timeout))
            .timeout_send_request(Some(hub.timeout))
            .timeout_recv_response(Some(3 * hub.timeout))
            .timeout_per_read(Some(hub.timeout))
            .timeout_per_write(Some(hub.timeout))
            .build()
            .new_agent();
        Ok(Self { agent, endpoint, token })
    }

    /// Requests `url`, from byte `first` on, and follows redirects until `is_enough` is true or there are no more.
    pub(super) fn send(
        &self,
        method: Method,
        url: &str,
        first: u64,
        is_enough: impl Fn(&Response<Body>) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut uri: Uri = url.parse().map_err(|_| Error::input("this is not an address").found(shown(url)))?;
        for _ in 0..=MOST_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(&uri);
            if first > 0 {
                request = request.header(header::RANGE, format!("bytes={first}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| Origin::of(&uri).as_ref() == Some(&self.endpoint)) {
                request = request.header(header::AUTHORIZATION, token);
            }
            let request = request.body(()).map_err(|error| Error::input("preparing a request").source(error))?;
            let reply = self.agent.run(request).map_err(|error| Failure::Again(error.to_string()))?;
            let is_redirect = matches!(reply.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_redirect || is_enough(&reply) {
                return Ok(reply);
            }
            let location = reply.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
            let Some(location) = location else {
                return Err(refused("the server redirects without saying where to").into());
            };
            uri = redirected(&uri, location)?;
        }
        Err(refused(&format!("the server redirects more than {MOST_REDIRECTS} times")).into())
    }
}

/// The error for an invalid reply.
pub(super) fn refused(what: &str) -> Error {
    Error::input(what).hint("is HF_ENDPOINT the address of a hub, and no proxy between it and this machine?")
}

/// Fails if the status does not report success.
pub(super) fn check_status(reply: &Response<Body>) -> Result<(), Failure> {
    match reply.status() {
        status if status.is_success() => Ok(()),
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            let token = "a gated or private model needs a token that may read it, in HF_TOKEN; is the id right?";
            Err(Error::input(format!("the hub answers {}", status.as_u16())).hint(token).into())
        }
        StatusCode::NOT_FOUND => Err(Failure::Absent),
        status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => Err(temporary_failure(status)),
        status if status.is_server_error() => Err(temporary_failure(status)),
        status => Err(refused(&format!("the hub answers {}", status.as_u16())).into()),
    }
}

fn temporary_failure(status: StatusCode) -> Failure {
    Failure::Again(format!("the hub answers {}", status.as_u16()))
}

/// The value of a header as a number.
pub(super) fn number(reply: &Response<Body>, name: &str) -> Option<u64> {
    reply.headers().get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The address to which a redirect from `base` may be followed: http or https, and from https only https.
fn redirected(base: &Uri, location: &str) -> Result<Uri, Error> {
    let next = join(base, location);
    let Some((next, origin)) = next.and_then(|next| Origin::of(&next).map(|origin| (next, origin))) else {
        return Err(refused("the server redirects to an address that is neither http nor https").found(shown(location)));
    };
    if base.scheme_str() == Some("https") && origin.scheme == "http" {
        return Err(refused("the server redirects from https to http").found(shown(location)));
    }
    Ok(next)
}

/// The address that a redirect from `base` leads to.
fn join(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let location = location.trim().split('#').next()?;
    let authority = base.authority()?;
    let absolute = if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['/', '?']).next()?.contains(':') {
        location.to_owned()
    } else {
        let (folder, _) = base.path().rsplit_once('/')?;
        format!("{scheme}://{authority}{folder}/{location}")
    };
    absolute.parse().ok()
}

/// A server's text for a message: safe to print and not too long.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() { cut + "..." } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Option<Origin> {
        Origin::of(&url.parse().ok()?)
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (a, b, same) in [
            ("https://hub.example/a", "https://HUB.example:443/b?c", true),
            ("http://hub.example", "http://hub.example:80", true),
            ("https://hub.example", "http://hub.example", false),
            ("https://hub.example", "https://hub.example:8443", false),
            ("https://hub.example", "https://cdn.hub.example", false),
            ("https://hub.example", "https://hub.example.evil.example", false),
            ("https://hub.example", "https://hub.example@evil.example", false),
            ("http://127.0.0.1:80", "http://localhost:80", false),
        ] {
            assert_eq!(origin(a).unwrap() == origin(b).unwrap(), same, "{a} {b}");
        }
        for url in ["ftp://hub.example", "file:///etc/passwd", "/path", "hub.example"] {
            assert_eq!(origin(url), None, "{url}");
        }
    }

    #[test]
    fn a_location_is_relative_to_what_was_asked_for() {
        let base = "https://hub.example:1/org/name/resolve/x?y".parse().unwrap();
        for (location, wanted) in [
            ("https://cdn.example/a?b#c", Some("https://cdn.example/a?b")),
            ("//cdn.example/a", Some("https://cdn.example/a")),
            ("/other/name", Some("https://hub.example:1/other/name")),
            ("z", Some("https://hub.example:1/org/name/resolve/z")),
            ("z?u=http://a", Some("https://hub.example:1/org/name/resolve/z?u=http://a")),
            ("file:/etc/passwd", None),
            ("https://", None),
        ] {
            let joined = join(&base, location).filter(|uri| Origin::of(uri).is_some());
            assert_eq!(joined.map(|uri| uri.to_string()).as_deref(), wanted, "{location}");
        }
    }

    #[test]
    fn no_redirect_leads_from_https_to_http() {
        for (base, location, allowed) in [
            ("https://hub.example/a", "http://hub.example/a", false),
            ("https://hub.example/a", "HTTP://cdn.example/a", false),
            ("https://hub.example/a", " http://hub.example:443/a", false),
            ("HTTPS://hub.example/a", "http://hub.example/a", false),
            ("https://hub.example/a", "https://cdn.example/a", true),
            ("https://hub.example/a", "//cdn.example/a", true),
            ("https://hub.example/a", "/http://x", true),
            ("http://hub.example/a", "https://cdn.example/a", true),
            ("http://hub.example/a", "http://cdn.example/a", true),
        ] {
            match (redirected(&base.parse().unwrap(), location), allowed) {
                (Ok(next), true) => assert!(base.starts_with("http:") || next.scheme_str() == Some("https"), "{next}"),
                (Err(error), false) => assert!(error.to_string().contains("from https to http"), "{error}"),
                (other, _) => panic!("{base} to {location}: {other:?}"),
            }
        }
        for location in ["ftp://hub.example/a", "file:///etc/passwd", "javascript:x", "https://", "data:,x"] {
            let error = redirected(&"https://hub.example/a".parse().unwrap(), location).unwrap_err().to_string();
            assert!(error.contains("neither http nor https"), "{location}: {error}");
        }
    }

    #[test]
    fn a_servers_text_is_escaped_and_cut() {
        assert_eq!(shown("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(shown(&"x".repeat(1000)).len(), SHOWN + 3);
    }
}
