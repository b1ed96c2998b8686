//! Methods about spaces and about the service itself.
//!
//! Invariant: `admin.status` reports what is, read at the moment of the call. Nothing here may show one space's content to
//! another; names and sizes of spaces are for the one user whom the socket lets in.

use crate::rpc::params::{MetricsFormat, MetricsParams, NoParams, SnapshotParams, SpaceParams};
use crate::rpc::results::{
    DropResult, MetricsResult, Report, ShutdownResult, SpacesResult, SyncResult,
};
use crate::rpc::{ErrorCode, RpcError};
use crate::service::clock::Stage;
use crate::service::errors::of_engine;
use crate::service::health;
use crate::service::lifecycle::Cause;
use crate::service::metrics::{self, CONTENT_TYPE};
use crate::service::validate;
use crate::service::{Context, Service};
use serde::Serialize;
use serde_json::{Value, json};

fn report(value: &impl Serialize) -> Result<Report, RpcError> {
    Ok(Report(json_of(value)?))
}

fn json_of(value: &impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|error| {
        RpcError::new(
            ErrorCode::InternalError,
            format!("the report could not be written as JSON: {error}"),
        )
    })
}

/// Handles `space.list`.
///
/// # Errors
/// None of its own.
pub fn space_list(context: &Context, NoParams {}: NoParams) -> Result<SpacesResult, RpcError> {
    let mut spaces = context.service.store.spaces();
    spaces.sort_by(|a, b| a.space.cmp(&b.space));
    let spaces = spaces.iter().map(report).collect::<Result<_, _>>()?;
    Ok(SpacesResult { spaces })
}

/// Handles `space.stats`.
///
/// # Errors
/// `NoSuchSpace`.
pub fn space_stats(context: &Context, params: SpaceParams) -> Result<Report, RpcError> {
    let space = validate::space(&params.space)?;
    let stats = context.service.store.space_stats(&space).map_err(of_engine)?;
    let mut report = report(&stats)?;
    if let Value::Object(members) = &mut report.0 {
        let failed = context.service.bulk.failed(&space);
        members.insert("embedding_failed".into(), failed.into());
    }
    Ok(report)
}

/// Handles `space.drop`.
///
/// # Errors
/// `NoSuchSpace`, and what the log says.
pub fn space_drop(context: &Context, params: SpaceParams) -> Result<DropResult, RpcError> {
    let space = validate::space(&params.space)?;
    context.clock.skip();
    let dropped = context.service.store.drop_space(&space);
    context.clock.mark(Stage::Store);
    let dropped = dropped.map_err(of_engine)?;
    context.service.background.wake();
    Ok(DropResult { dropped })
}

/// Handles `admin.status`.
///
/// # Errors
/// None of its own.
pub fn status(context: &Context, NoParams {}: NoParams) -> Result<Report, RpcError> {
    let service = &context.service;
    let uptime = service.started.elapsed();
    Ok(Report(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_ms": u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        "socket": service.place.socket,
        "store_dir": service.place.store_dir,
        "embedder": embedder(service)?,
        "store": json_of(&service.store.status())?,
        "recovery": json_of(service.store.recovery())?,
        "lanes": {
            "interactive": service.interactive.status(),
            "queries_kept": service.queries.kept(),
            "queries_kept_limit": service.queries.limit(),
            "bulk": service.bulk.status(),
        },
        "background": service.background.status(),
        "degraded": health::degraded(context),
        "connections": service.connections.taken(),
        "requests_in_flight": service.in_flight.taken(),
        "counters": service.counters.read(),
        "limits": service.limits,
    })))
}

/// Handles `admin.metrics`.
///
/// # Errors
/// None of its own.
pub fn metrics(context: &Context, params: MetricsParams) -> Result<MetricsResult, RpcError> {
    let exposition = metrics::collect(&context.service);
    match params.format {
        MetricsFormat::Json => Ok(MetricsResult::Json(exposition.reading(now_ms()))),
        MetricsFormat::OpenMetrics => {
            let text = exposition.text().map_err(|error| {
                RpcError::new(
                    ErrorCode::InternalError,
                    format!("the metrics could not be written as text: {error}"),
                )
            })?;
            Ok(MetricsResult::OpenMetrics { content_type: CONTENT_TYPE, text })
        }
    }
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// What the embedder ran on, with the device that was wanted beside the one that is used.
fn embedder(service: &Service) -> Result<Value, RpcError> {
    let mut embedder = json_of(&service.embed_ran_whole)?;
    embedder["device"] = json_of(&service.device)?;
    Ok(embedder)
}

/// Handles `admin.verify`.
///
/// # Errors
/// When the store cannot be read; damage that was found is in the report.
pub fn verify(context: &Context, NoParams {}: NoParams) -> Result<Report, RpcError> {
    report(&context.service.store.verify().map_err(of_engine)?)
}

/// Handles `admin.compact`.
///
/// # Errors
/// What the store says.
pub fn compact(context: &Context, NoParams {}: NoParams) -> Result<Report, RpcError> {
    report(&context.service.store.compact().map_err(of_engine)?)
}

/// Handles `admin.sync`.
///
/// # Errors
/// `OutcomeUnknown`.
pub fn sync(context: &Context, NoParams {}: NoParams) -> Result<SyncResult, RpcError> {
    let durable_lsn = context.service.store.sync().map_err(of_engine)?.0;
    Ok(SyncResult { durable_lsn })
}

/// Handles `admin.snapshot`.
///
/// # Errors
/// −32602 for a path that is there already or relative; what the store says.
pub fn snapshot(context: &Context, params: SnapshotParams) -> Result<Report, RpcError> {
    let path = validate::path(&params.path)?;
    if path.symlink_metadata().is_ok() {
        return Err(RpcError::invalid(
            "path",
            format!("{} is there already; name a folder that is not", path.display()),
        ));
    }
    report(&context.service.store.snapshot(&path).map_err(of_engine)?)
}

/// Handles `admin.shutdown`.
///
/// # Errors
/// None.
pub fn shutdown(context: &Context, NoParams {}: NoParams) -> Result<ShutdownResult, RpcError> {
    context.service.lifecycle.stop(Cause::Requested);
    Ok(ShutdownResult { stopping: true })
}
