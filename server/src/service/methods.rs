//! The table of all methods.
//!
//! Invariant: what is not in this table does not exist, neither for the dispatcher nor in the OpenRPC document. It must not
//! hold any logic.

use crate::methods;
use crate::rpc::params::{
    AddParams, AroundParams, ContextParams, DeleteParams, ExportParams, GetParams, ImportParams,
    ListParams, MetricsParams, NoParams, SearchParams, SnapshotParams, SpaceParams, UpdateParams,
};
use crate::rpc::results::{
    AddResult, ContextResult, DeleteResult, DropResult, ExportResult, HealthResult, ImportResult,
    ItemsResult, MetricsResult, Report, SearchResult, ShutdownResult, SpacesResult, SyncResult,
    UpdateResult,
};
use crate::rpc::{Method, RpcError, openrpc};
use crate::service::Context;
use crate::service::{admin, health, memory, search, transfer};
use serde_json::Value;
use std::sync::OnceLock;

/// Every method of the protocol.
pub static METHODS: &[Method<Context>] = methods! { Context;
    "memory.add" => memory::add, AddParams => AddResult, true,
        [Conflict, LimitExceeded, DeadlineExceeded, DiskFull, OutcomeUnknown, Embedding, ReadOnly],
        "Stores memories, whole or not at all; the first add makes the space.";
    "memory.search" => search::search, SearchParams => SearchResult, true,
        [NoSuchSpace, NotYet, DeadlineExceeded, LimitExceeded, Embedding, Corrupt],
        "Finds the memories nearest to a text or a vector.";
    "memory.context" => search::context, ContextParams => ContextResult, true,
        [NoSuchSpace, NotYet],
        "Finds memories and packs them into a text of so many tokens; not yet in this version.";
    "memory.get" => memory::get, GetParams => ItemsResult, true,
        [NoSuchSpace, LimitExceeded, Corrupt],
        "Gives memories by id, null for each that is not there.";
    "memory.list" => memory::list, ListParams => ItemsResult, true,
        [NoSuchSpace, Corrupt],
        "Gives memories in the order of the space, page by page.";
    "memory.around" => memory::around, AroundParams => ItemsResult, true,
        [NoSuchSpace, NoSuchMemory, LimitExceeded, Corrupt],
        "Gives a memory and those before and after it.";
    "memory.update" => memory::update, UpdateParams => UpdateResult, true,
        [NoSuchSpace, NoSuchMemory, SeqMismatch, DiskFull, OutcomeUnknown, ReadOnly],
        "Changes one memory, which becomes the newest of its space.";
    "memory.delete" => memory::delete, DeleteParams => DeleteResult, true,
        [NoSuchSpace, ExpectCount, DiskFull, OutcomeUnknown, ReadOnly],
        "Deletes memories at once and for good.";
    "memory.import" => transfer::import, ImportParams => ImportResult, true,
        [Transfer, DiskFull, OutcomeUnknown, Io, ReadOnly],
        "Reads a conversation file that the service can see; importing again adds nothing.";
    "memory.export" => transfer::export, ExportParams => ExportResult, true,
        [NoSuchSpace, Transfer, DiskFull, Io, Corrupt],
        "Writes a space to a file, one memory a line.";
    "space.list" => admin::space_list, NoParams => SpacesResult, true, [],
        "Lists the spaces with their sizes.";
    "space.stats" => admin::space_stats, SpaceParams => Report, true, [NoSuchSpace],
        "Gives the sizes of one space.";
    "space.drop" => admin::space_drop, SpaceParams => DropResult, true,
        [NoSuchSpace, DiskFull, OutcomeUnknown, ReadOnly],
        "Deletes a space and everything in it.";
    "admin.health" => health::health, NoParams => HealthResult, false, [Embedding],
        "Embeds a real text and runs a real search, and says on what.";
    "admin.status" => admin::status, NoParams => Report, false, [],
        "Says what the service is, what it is doing and what it allows.";
    "admin.metrics" => admin::metrics, MetricsParams => MetricsResult, false, [],
        "Gives counters, gauges and histograms since start, as OpenMetrics text or as JSON.";
    "admin.verify" => admin::verify, NoParams => Report, false, [Corrupt, Io],
        "Reads the whole store and reports every damage.";
    "admin.compact" => admin::compact, NoParams => Report, false, [DiskFull, OutcomeUnknown, Corrupt, ReadOnly],
        "Gives back the space of what was deleted.";
    "admin.sync" => admin::sync, NoParams => SyncResult, false, [OutcomeUnknown],
        "Answers once everything that was answered before is on the device, whatever the level of durability.";
    "admin.snapshot" => admin::snapshot, SnapshotParams => Report, false, [DiskFull, Io, Corrupt],
        "Writes a consistent copy of the store to a folder that does not exist yet.";
    "admin.shutdown" => admin::shutdown, NoParams => ShutdownResult, false, [],
        "Answers, finishes what is under way, and ends the service.";
    "rpc.discover" => discover, NoParams => Report, false, [],
        "Gives this description of the protocol in the OpenRPC format.";
};

fn discover(context: &Context, NoParams {}: NoParams) -> Result<Report, RpcError> {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    let document = DOCUMENT.get_or_init(|| openrpc::document(METHODS, &context.service.limits));
    Ok(Report(document.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::{ErrorCode, Limits};
    use std::collections::BTreeSet;

    fn document() -> Value {
        openrpc::document(METHODS, &Limits::default())
    }

    #[test]
    fn names_are_distinct_and_all_of_the_protocol_is_there() {
        let names: BTreeSet<&str> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(names.len(), METHODS.len());
        for group in [
            "memory: add search context get list around update delete import export",
            "space: list stats drop",
            "admin: health status metrics verify compact sync snapshot shutdown",
            "rpc: discover",
        ] {
            let (prefix, verbs) = group.split_once(": ").expect("written so above");
            for verb in verbs.split(' ') {
                assert!(names.contains(format!("{prefix}.{verb}").as_str()), "{verb}");
            }
        }
    }

    #[test]
    fn the_document_describes_exactly_the_table() {
        let document = document();
        assert_eq!(document["openrpc"], "1.3.2");
        let described = document["methods"].as_array().expect("an array");
        assert_eq!(described.len(), METHODS.len());
        for (entry, method) in described.iter().zip(METHODS) {
            assert_eq!(entry["name"], method.name);
            let codes: BTreeSet<i64> = entry["errors"]
                .as_array()
                .expect("an array")
                .iter()
                .filter_map(|error| error["code"].as_i64())
                .collect();
            for error in method.errors {
                assert!(codes.contains(&i64::from(error.code())), "{}", method.name);
            }
            assert!(entry["result"]["schema"].is_object(), "{}", method.name);
        }
    }

    /// The described parameters are those that parsing accepts: each required one is asked for when it is left out, and
    /// one that is not described is refused by name.
    #[test]
    fn described_parameters_are_those_that_are_parsed() {
        let document = document();
        let described = document["methods"].as_array().expect("an array");
        for (entry, method) in described.iter().zip(METHODS) {
            let name = method.name;
            let refused = |params| (method.check)(Some(params)).expect_err(name).message;
            let params = entry["params"].as_array().expect("an array");
            let unknown = refused(r#"{"no_such_parameter":1}"#);
            assert!(unknown.contains("unknown field `no_such_parameter`"), "{name}: {unknown}");
            for param in params {
                let param_name = param["name"].as_str().expect("a name");
                if params.len() > 1 {
                    assert!(unknown.contains(&format!("`{param_name}`")), "{name}: {unknown}");
                }
            }
            let required = params.iter().filter(|param| param["required"] == true);
            match required.count() {
                0 => assert!((method.check)(Some("{}")).is_ok(), "{name}"),
                _ => assert!(refused("{}").contains("missing field"), "{name}"),
            }
        }
    }

    #[test]
    fn every_reference_in_the_document_resolves() {
        fn walk(value: &Value, document: &Value, seen: &mut usize) {
            match value {
                Value::Object(members) => {
                    if let Some(path) = members.get("$ref").and_then(Value::as_str) {
                        *seen += 1;
                        let pointer = path.strip_prefix('#').expect("a local reference");
                        assert!(document.pointer(pointer).is_some(), "{path}");
                    }
                    members.values().for_each(|inner| walk(inner, document, seen));
                }
                Value::Array(items) => items.iter().for_each(|inner| walk(inner, document, seen)),
                _ => {}
            }
        }
        let document = document();
        let mut seen = 0;
        walk(&document, &document, &mut seen);
        assert!(seen > 10, "only {seen} references");
        assert_eq!(document["methods"][0]["params"][0]["required"], true);
        assert_eq!(document["methods"][1]["errors"][5]["code"], ErrorCode::NotYet.code());
    }
}
