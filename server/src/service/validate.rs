//! Parameters as they stand on the wire, checked and turned into what the engine takes.
//!
//! Invariant: what passes here is inside every limit; an error names the parameter, what was wrong and what is allowed.
//! It must not touch the store.

use crate::rpc::params::{NewItem, OnConflict, PatchParams, TimeParams};
use crate::rpc::time::TsMs;
use crate::rpc::{self, Limits, RpcError};
use flashbulb_engine::{Filter, NewMemory, Patch, RequestId, SpaceName, TimeRange};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The name of a space.
pub(crate) fn space(name: &str) -> Result<SpaceName, RpcError> {
    SpaceName::parse(name).map_err(|error| RpcError::invalid("space", error))
}

/// A whole number inside a range.
pub(crate) fn number(field: &str, value: u64, least: u64, most: usize) -> Result<usize, RpcError> {
    usize::try_from(value)
        .ok()
        .filter(|_| value >= least)
        .filter(|&number| number <= most)
        .ok_or_else(|| {
            RpcError::invalid(field, format!("{value} is not allowed; {least} to {most} is"))
        })
}

/// An id of a memory.
pub(crate) fn id(field: &str, id: &str, limits: &Limits) -> Result<(), RpcError> {
    if id.is_empty() {
        return Err(RpcError::invalid(field, "an id must not be empty"));
    }
    within(field, id, limits.id_bytes)
}

/// The key of a request that may be repeated.
pub(crate) fn key(key: &str, on_conflict: OnConflict, limits: &Limits) -> Result<(), RpcError> {
    if key.is_empty() {
        return Err(RpcError::invalid("idempotency_key", "must not be empty"));
    }
    within("idempotency_key", key, limits.id_bytes)?;
    if on_conflict != OnConflict::Error {
        let why = "not together with `idempotency_key`, which says what happens to what is there";
        return Err(RpcError::invalid("on_conflict", why));
    }
    Ok(())
}

/// Gives items without an id one that follows from the space, the key and the item's place (UUID version 5, RFC 9562), so that
/// the request can be told from another when it is repeated.
pub(crate) fn name_items(space: &SpaceName, key: &str, items: &mut [NewItem]) {
    // A namespace of this program's own.
    const NAMESPACE: Uuid = Uuid::from_u128(0x8d1f_6e0c_4b3a_5c77_9a52_f1a5_4b01_beef);
    for (place, item) in items.iter_mut().enumerate().filter(|(_, item)| item.id.is_none()) {
        // Space names have no line ends, and the place comes last, so no two names are alike.
        let name = format!("{space}\n{key}\n{place}");
        item.id = Some(Uuid::new_v5(&NAMESPACE, name.as_bytes()).to_string());
    }
}

/// What tells a request from others: its key, and all that its items say.
pub(crate) fn request(key: &str, items: &[NewItem]) -> RequestId {
    let mut content = Xxh3::new();
    let mut put = |part: Option<&[u8]>| {
        content.update(&part.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
        content.update(part.unwrap_or_default());
    };
    for item in items {
        for text in [&item.id, &item.role, &item.session] {
            put(text.as_deref().map(str::as_bytes));
        }
        put(Some(item.text.as_bytes()));
        put(item.meta.as_deref().map(|meta| meta.get().as_bytes()));
        put(item.ts.map(|ts| ts.0.to_le_bytes()).as_ref().map(<[u8; 8]>::as_slice));
        let vector = item
            .vector
            .as_deref()
            .map(|vector| vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
        put(vector.as_deref());
    }
    RequestId { key: xxh3_128(key.as_bytes()), content: content.digest128() }
}

/// A list of ids.
pub(crate) fn ids(ids: &[String], limits: &Limits) -> Result<(), RpcError> {
    if ids.is_empty() {
        return Err(RpcError::invalid("ids", "give at least one id"));
    }
    if ids.len() > limits.ids {
        return Err(RpcError::over_limit("ids", ids.len(), limits.ids, "ids"));
    }
    ids.iter().enumerate().try_for_each(|(index, one)| id(&format!("ids[{index}]"), one, limits))
}

/// A text that is to be embedded.
pub(crate) fn text(field: &str, text: &str, most: usize) -> Result<(), RpcError> {
    within(field, text, most)?;
    if text.trim().is_empty() {
        return Err(RpcError::invalid(
            field,
            "blank; at least one character that is not white space is needed",
        ));
    }
    Ok(())
}

fn within(field: &str, value: &str, most: usize) -> Result<(), RpcError> {
    if value.len() > most {
        return Err(RpcError::over_limit(field, value.len(), most, "bytes"));
    }
    Ok(())
}

/// The text of a meta object, checked whole: an object, not too large, not too deep, and readable by every JSON reader
/// (lone surrogates and numbers out of range are not).
pub(crate) fn meta(field: &str, raw: &str, limits: &Limits) -> Result<String, RpcError> {
    within(field, raw, limits.meta_bytes)?;
    if !raw.starts_with('{') {
        return Err(RpcError::invalid(field, "must be a JSON object or null"));
    }
    let depth = rpc::depth(raw.as_bytes());
    if depth > limits.meta_depth {
        return Err(RpcError::over_limit(field, depth, limits.meta_depth, "levels of nesting"));
    }
    serde_json::from_str::<Value>(raw)
        .map_err(|error| RpcError::invalid(field, format!("not usable JSON: {error}")))?;
    // Raw line breaks can only stand between tokens, and an answer is one line.
    Ok(raw.replace(['\n', '\r'], " "))
}

/// The items of an `add`, with ids and times made where they were left out.
pub(crate) fn items(items: Vec<NewItem>, limits: &Limits) -> Result<Vec<NewMemory>, RpcError> {
    if items.is_empty() {
        return Err(RpcError::invalid("items", "give at least one item"));
    }
    if items.len() > limits.items {
        return Err(RpcError::over_limit("items", items.len(), limits.items, "items"));
    }
    let now = TsMs::now();
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| new_memory(index, item, now, limits))
        .collect()
}

fn new_memory(
    index: usize,
    item: NewItem,
    now: TsMs,
    limits: &Limits,
) -> Result<NewMemory, RpcError> {
    let field = |name: &str| format!("items[{index}].{name}");
    if let Some(given) = &item.id {
        id(&field("id"), given, limits)?;
    }
    text(&field("text"), &item.text, limits.text_bytes)?;
    label(&field("role"), item.role.as_deref(), limits.role_bytes)?;
    label(&field("session"), item.session.as_deref(), limits.session_bytes)?;
    let meta = item.meta.map(|raw| meta(&field("meta"), raw.get(), limits)).transpose()?;
    Ok(NewMemory {
        id: item.id.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
        text: item.text,
        role: item.role,
        session: item.session,
        ts_ms: item.ts.unwrap_or(now).0,
        meta,
        vectors: item.vector.map(|vector| vec![vector]),
        request: None,
    })
}

fn label(field: &str, value: Option<&str>, most: usize) -> Result<(), RpcError> {
    value.map_or(Ok(()), |value| within(field, value, most))
}

/// What an `update` changes.
pub(crate) fn patch(patch: PatchParams, limits: &Limits) -> Result<Patch, RpcError> {
    if let Some(new) = &patch.text {
        text("patch.text", new, limits.text_bytes)?;
    }
    let role = patch.role.as_ref().and_then(Option::as_deref);
    label("patch.role", role, limits.role_bytes)?;
    let session = patch.session.as_ref().and_then(Option::as_deref);
    label("patch.session", session, limits.session_bytes)?;
    let meta = match patch.meta {
        Some(Some(raw)) => Some(Some(meta("patch.meta", raw.get(), limits)?)),
        Some(None) => Some(None),
        None => None,
    };
    let changed = Patch {
        text: patch.text,
        role: patch.role,
        session: patch.session,
        ts_ms: patch.ts.map(|ts| ts.0),
        meta,
        vectors: patch.vector.map(|vector| vec![vector]),
        text_vectors: None,
    };
    let nothing = changed.text.is_none()
        && changed.role.is_none()
        && changed.session.is_none()
        && changed.ts_ms.is_none()
        && changed.meta.is_none()
        && changed.vectors.is_none();
    if nothing {
        return Err(RpcError::invalid(
            "patch",
            "names nothing to change; allowed are text, role, session, ts, meta, vector",
        ));
    }
    Ok(changed)
}

/// A filter of the protocol's small language.
pub(crate) fn filter(json: Option<&Value>) -> Result<Option<Filter>, RpcError> {
    json.map(|json| Filter::parse(json).map_err(|error| RpcError::invalid("filter", error)))
        .transpose()
}

/// A range of time that is not upside down.
pub(crate) fn time(range: Option<TimeParams>) -> Result<Option<TimeRange>, RpcError> {
    let Some(range) = range else { return Ok(None) };
    if let (Some(from), Some(to)) = (range.from, range.to)
        && from > to
    {
        return Err(RpcError::invalid("time", "`from` is later than `to`"));
    }
    Ok(Some(TimeRange { from_ms: range.from.map(|ts| ts.0), to_ms: range.to.map(|ts| ts.0) }))
}

/// The time a request may take.
pub(crate) fn deadline(deadline_ms: Option<u64>, limits: &Limits) -> Result<Duration, RpcError> {
    let ms = deadline_ms.unwrap_or(limits.default_deadline_ms);
    if ms == 0 || ms > limits.max_deadline_ms {
        return Err(RpcError::invalid(
            "deadline_ms",
            format!("{ms} is not allowed; 1 to {} is", limits.max_deadline_ms),
        ));
    }
    Ok(Duration::from_millis(ms))
}

/// A path that does not depend on the daemon's working directory.
pub(crate) fn path(path: &str) -> Result<PathBuf, RpcError> {
    if path.contains('\0') || !Path::new(path).is_absolute() {
        return Err(RpcError::invalid(
            "path",
            "must be absolute: the service does not share the client's working directory",
        ));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use flashbulb_engine as engine;
    use serde_json::json;

    fn checked(item: Value) -> Result<Vec<NewMemory>, RpcError> {
        let item = serde_json::from_str(&item.to_string()).unwrap();
        items(vec![item], &Limits::default())
    }

    #[test]
    fn items_outside_the_limits_name_their_field() {
        let deep = (0..40).fold(json!(1), |inner, _| json!({ "a": inner }));
        for (item, field) in [
            (json!({"text": ""}), "items[0].text"),
            (json!({"text": " \n\t"}), "items[0].text"),
            (json!({"text": "x".repeat((256 << 10) + 1)}), "items[0].text"),
            (json!({"text": "x", "id": ""}), "items[0].id"),
            (json!({"text": "x", "id": "i".repeat(129)}), "items[0].id"),
            (json!({"text": "x", "role": "r".repeat(129)}), "items[0].role"),
            (json!({"text": "x", "session": "s".repeat(257)}), "items[0].session"),
            (json!({"text": "x", "meta": [1]}), "items[0].meta"),
            (json!({"text": "x", "meta": "{}"}), "items[0].meta"),
            (json!({"text": "x", "meta": deep}), "items[0].meta"),
            (json!({"text": "x", "meta": {"a": "x".repeat(64 << 10)}}), "items[0].meta"),
        ] {
            let error = checked(item).unwrap_err();
            assert_eq!(error.code, -32602);
            assert_eq!(error.data.unwrap()["what"], field, "{}", error.message);
        }
    }

    /// The service's limits come first, so that an error names the parameter.
    #[test]
    fn no_limit_is_wider_than_the_engines() {
        let limits = Limits::default();
        assert!(limits.text_bytes <= engine::TEXT_MAX_BYTES);
        assert!(limits.meta_bytes <= engine::META_MAX_BYTES);
        assert!(limits.id_bytes <= engine::ID_MAX_BYTES);
        assert!(limits.role_bytes.max(limits.session_bytes) <= engine::LABEL_MAX_BYTES);
        assert!(limits.k <= engine::K_MAX);
    }

    #[test]
    fn what_is_left_out_is_made() {
        let before = TsMs::now().0;
        let memory = checked(json!({"text": "x"})).unwrap().remove(0);
        assert_eq!(uuid::Uuid::parse_str(&memory.id).unwrap().get_version_num(), 7);
        assert!(memory.ts_ms >= before && memory.ts_ms <= TsMs::now().0);
        assert_eq!(memory.vectors, None);
    }

    #[test]
    fn meta_keeps_its_bytes_except_line_breaks_between_tokens() {
        let limits = Limits::default();
        let raw = r#"{ "a":1.0, "b":"[{\"[" }"#;
        assert_eq!(meta("meta", raw, &limits).unwrap(), raw);
        assert_eq!(meta("meta", "{\n\"a\":1\r\n}", &limits).unwrap(), "{ \"a\":1  }");
        for bad in [r#"{"a":"\ud800"}"#, r#"{"a":1e999}"#] {
            assert!(meta("meta", bad, &limits).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_paths_and_ranges_are_checked() {
        assert_eq!(number("k", 1000, 1, 1000).unwrap(), 1000);
        for bad in [0, 1001, u64::MAX] {
            let error = number("k", bad, 1, 1000).unwrap_err();
            assert!(error.message.contains("1 to 1000"), "{}", error.message);
        }
        for bad in ["", "relative", "./x", "/nul\0byte"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        let upside_down = TimeParams { from: Some(TsMs(2)), to: Some(TsMs(1)) };
        assert!(time(Some(upside_down)).is_err());
        assert!(deadline(Some(0), &Limits::default()).is_err());
        assert!(patch(PatchParams::default(), &Limits::default()).is_err());
    }
}
