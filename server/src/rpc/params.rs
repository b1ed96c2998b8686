//! The parameters of every method, as they stand on the wire.
//!
//! Invariant: a member that a method does not know is an error, and so is a value of another type; ranges and sizes are
//! checked by the service against [`crate::rpc::Limits`]. These types must not know the engine's.

use crate::rpc::time::TsMs;
use schemars::JsonSchema;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// Parameters of a method that takes none.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Parameters of a method that takes a space only.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpaceParams {
    /// Name of the space, `[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}`.
    pub space: String,
}

/// What `memory.add` does with an id that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// Nothing is added and the answer is `Conflict`.
    #[default]
    Error,
    /// The memory that is there stays.
    Skip,
    /// The new memory takes its place.
    Replace,
}

/// When `memory.add` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Once the log is synced.
    #[default]
    Durable,
    /// Once the memories are found by meaning, too.
    Searchable,
}

/// `memory.add`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddParams {
    /// Name of the space; it comes to be with its first `add`.
    pub space: String,
    /// One to 1,000 memories, stored whole or not at all.
    pub items: Vec<NewItem>,
    /// What to do with an id that is there already.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// When to answer.
    #[serde(default)]
    pub wait: Wait,
    /// 1 to 128 bytes of the client's choice, the same each time it repeats this request because an answer was lost: nothing is
    /// added twice. Items without an id get ids that follow from space, key and place, and what is there already is answered
    /// `skipped`. Not with another `on_conflict` than `error`.
    pub idempotency_key: Option<String>,
}

/// One memory to add.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewItem {
    /// Up to 128 bytes; a UUIDv7 is made when left out.
    pub id: Option<String>,
    /// The text, not blank.
    pub text: String,
    /// Who said it: `user`, `assistant`, `tool`, a speaker's name.
    pub role: Option<String>,
    /// The conversation it belongs to.
    pub session: Option<String>,
    /// When it was said; now when left out.
    pub ts: Option<TsMs>,
    /// A JSON object, kept to the byte.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub meta: Option<Box<RawValue>>,
    /// A vector of one's own, of the store's dimension; the text is not embedded then.
    pub vector: Option<Vec<f32>>,
}

/// How `memory.search` looks for memories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By meaning and by words.
    Hybrid,
    /// By meaning.
    Dense,
    /// By words.
    Lexical,
}

/// A half-open range of time.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeParams {
    /// The first time inside.
    pub from: Option<TsMs>,
    /// The first time after it.
    pub to: Option<TsMs>,
}

/// How many memories before and after a hit come with it.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NeighborParams {
    /// Memories before the hit, by `seq`.
    #[serde(default)]
    pub before: u64,
    /// Memories after the hit, by `seq`.
    #[serde(default)]
    pub after: u64,
}

/// Both methods that search take the same parameters; a flattened struct could not refuse unknown ones.
macro_rules! search_params {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty,)* }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// Name of the space.
            pub space: String,
            /// Text to look for; either this or `vector`.
            pub query: Option<String>,
            /// Vector to look for, of the store's dimension; either this or `query`.
            pub vector: Option<Vec<f32>>,
            /// Most hits to give back, 1 to 1,000.
            #[serde(default = "default_k")]
            pub k: u64,
            /// Dense when left out.
            pub mode: Option<Mode>,
            /// Condition over `role`, `session` and `meta.*`.
            #[schemars(with = "Option<serde_json::Map<String, Value>>")]
            pub filter: Option<Value>,
            /// Only memories with a `ts` in this range.
            pub time: Option<TimeParams>,
            /// Memories around each hit.
            pub neighbors: Option<NeighborParams>,
            /// Waits until everything up to this `seq` can be found.
            pub min_seq: Option<u64>,
            /// Compares every vector, however long that takes.
            #[serde(default)]
            pub exact: bool,
            /// Adds scores by stage and how the search was run.
            #[serde(default)]
            pub explain: bool,
            /// Milliseconds after which the answer is an error; 10,000 when left out.
            pub deadline_ms: Option<u64>,
            $($(#[doc = $field_doc])+ pub $field: $type,)*
        }
    };
}

fn default_k() -> u64 {
    10
}

search_params! {
    /// `memory.search`.
    SearchParams {}
}

search_params! {
    /// `memory.context`.
    ContextParams {
        /// Most tokens of the text.
        budget_tokens: u64,
    }
}

/// `memory.get`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GetParams {
    /// Name of the space.
    pub space: String,
    /// Up to 1,000 ids.
    pub ids: Vec<String>,
}

/// `memory.list`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListParams {
    /// Name of the space.
    pub space: String,
    /// Condition over `role`, `session` and `meta.*`.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub filter: Option<Value>,
    /// The `cursor` of the answer before.
    pub cursor: Option<String>,
    /// Most memories to give back, 1 to 1,000.
    #[serde(default = "default_list")]
    pub limit: u64,
}

fn default_list() -> u64 {
    100
}

/// `memory.around`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AroundParams {
    /// Name of the space.
    pub space: String,
    /// The memory in the middle.
    pub id: String,
    /// Memories before it, by `seq`.
    #[serde(default = "default_around")]
    pub before: u64,
    /// Memories after it, by `seq`.
    #[serde(default = "default_around")]
    pub after: u64,
}

fn default_around() -> u64 {
    5
}

/// `memory.update`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateParams {
    /// Name of the space.
    pub space: String,
    /// The memory to change.
    pub id: String,
    /// What to change, at least one member.
    pub patch: PatchParams,
    /// Only if the memory still has this `seq`.
    pub if_seq: Option<u64>,
}

/// What `memory.update` changes; `null` takes a role, session or meta away.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchParams {
    /// The new text, not blank; it is embedded anew.
    pub text: Option<String>,
    /// The new role.
    #[serde(default, deserialize_with = "given")]
    pub role: Option<Option<String>>,
    /// The new session.
    #[serde(default, deserialize_with = "given")]
    pub session: Option<Option<String>>,
    /// The new time.
    pub ts: Option<TsMs>,
    /// The new meta, in place of the whole old one.
    #[serde(default, deserialize_with = "given")]
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub meta: Option<Option<Box<RawValue>>>,
    /// A vector of one's own.
    pub vector: Option<Vec<f32>>,
}

/// Tells a member that is `null` from one that is left out.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// `memory.delete`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteParams {
    /// Name of the space.
    pub space: String,
    /// Memories to delete; either this or `filter`.
    pub ids: Option<Vec<String>>,
    /// Deletes all memories that meet it; either this or `ids`.
    #[schemars(with = "Option<serde_json::Map<String, Value>>")]
    pub filter: Option<Value>,
    /// Counts and deletes nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Deletes only if exactly this many memories are found.
    pub expect_count: Option<u64>,
}

/// A format that `memory.import` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImportFormat {
    /// OpenAI-style `messages` JSONL.
    Messages,
    /// Claude Code session logs, a file or a folder.
    Claude,
    /// The `conversations.json` of a ChatGPT export.
    ChatGpt,
    /// Plain text, one memory a line.
    Text,
    /// What `memory.export` writes.
    Export,
}

/// `memory.import`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportParams {
    /// Name of the space.
    pub space: String,
    /// Found by looking into the file when left out.
    pub format: Option<ImportFormat>,
    /// Absolute path of a file or folder that the service can read.
    pub path: String,
    /// Counts and stores nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// A format that `memory.export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// One memory a line as a JSON object; `export` means the same.
    #[default]
    #[serde(alias = "export")]
    Jsonl,
}

/// `memory.export`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportParams {
    /// Name of the space.
    pub space: String,
    /// `jsonl` when left out.
    #[serde(default)]
    pub format: ExportFormat,
    /// Absolute path of the file to write; a regular file that is there is replaced as a whole.
    pub path: String,
}

/// A format of `admin.metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MetricsFormat {
    /// The OpenMetrics text.
    #[default]
    OpenMetrics,
    /// An object with finer buckets.
    Json,
}

/// `admin.metrics`.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsParams {
    /// `openmetrics` when left out.
    #[serde(default)]
    pub format: MetricsFormat,
}

/// `admin.snapshot`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotParams {
    /// Absolute path of a folder that does not exist yet.
    pub path: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rpc::table::parse_params;

    #[test]
    fn defaults_are_those_of_the_protocol() {
        let search: SearchParams = parse_params(Some(r#"{"space":"s"}"#)).unwrap();
        assert_eq!((search.k, search.mode, search.explain, search.exact), (10, None, false, false));
        let add: AddParams = parse_params(Some(r#"{"space":"s","items":[]}"#)).unwrap();
        assert_eq!((add.on_conflict, add.wait), (OnConflict::Error, Wait::Durable));
    }

    #[test]
    fn meta_is_kept_to_the_byte_and_null_means_none() {
        let raw = r#"{"b" : 1.0,"a":[1e2, "ü\u00fc"]}"#;
        let json = format!(
            r#"{{"space":"s","items":[{{"text":"t","meta":{raw}}},{{"text":"t","meta":null}}]}}"#
        );
        let add: AddParams = parse_params(Some(&json)).unwrap();
        assert_eq!(add.items[0].meta.as_ref().unwrap().get(), raw);
        assert!(add.items[1].meta.is_none());
    }

    #[test]
    fn a_patch_tells_null_from_left_out() {
        let json = r#"{"space":"s","id":"i","patch":{"role":null,"meta":{"a": 1}}}"#;
        let update: UpdateParams = parse_params(Some(json)).unwrap();
        assert_eq!(update.patch.role, Some(None));
        assert_eq!(update.patch.session, None);
        let meta = update.patch.meta.unwrap().unwrap();
        assert_eq!(meta.get(), r#"{"a": 1}"#);
    }

    #[test]
    fn wrong_types_and_unknown_members_name_the_path() {
        for (json, field) in [
            (r#"{"space":"s","query":"x","k":"3"}"#, "k"),
            (r#"{"space":"s","query":"x","k":-1}"#, "k"),
            (r#"{"space":"s","query":"x","k":1.5}"#, "k"),
            (r#"{"space":"s","query":"x","mode":"magic"}"#, "mode"),
            (r#"{"space":"s","query":"x","unknown":1}"#, "unknown"),
            (r#"{"space":"s","query":"x","time":{"from":"soon"}}"#, "time.from"),
            (r#"{"space":"s","query":"x","time":{"until":1}}"#, "time.until"),
            (r#"{"space":"s","query":"\ud800"}"#, "query"),
            (r#"{"space":"s","vector":["a"]}"#, "vector[0]"),
        ] {
            let error = parse_params::<SearchParams>(Some(json)).unwrap_err();
            assert_eq!(error.data.unwrap()["what"], field, "{json}: {}", error.message);
        }
    }

    #[test]
    fn nesting_without_bound_is_an_error_and_no_overflow() {
        let json = format!(
            r#"{{"space":"s","query":"x","filter":{}1{}}}"#,
            r#"{"not":"#.repeat(100_000),
            "}".repeat(100_000)
        );
        let error = parse_params::<SearchParams>(Some(&json)).unwrap_err();
        assert!(error.message.contains("recursion limit"), "{}", error.message);
    }
}
