//! The server's table of methods over handlers that check their parameters as the real ones do, and do nothing.
//!
//! Invariant: names, parameters and checks are the server's own sources; only what happens behind them is missing.

use serde_json::Value;

use crate::rpc::params::{
    AddParams, DeleteParams, ListParams, SearchParams, SnapshotParams, UpdateParams,
};
use crate::rpc::{ErrorCode, Limits, RpcError};

#[path = "../../server/src/service/methods.rs"]
pub(crate) mod methods;
#[path = "../../server/src/service/validate.rs"]
pub(crate) mod validate;

/// What handlers get.
pub(crate) struct Context {
    pub(crate) service: Service,
}

/// What of the service there is.
pub(crate) struct Service {
    pub(crate) limits: Limits,
}

pub(crate) fn nothing<P, R>(_: &Context, _: P) -> Result<R, RpcError> {
    Err(RpcError::new(ErrorCode::NotYet, "there is no store behind this"))
}

pub(crate) fn checked<T, R>(of: Result<T, RpcError>) -> Result<R, RpcError> {
    of.and_then(|_| Err(RpcError::new(ErrorCode::NotYet, "there is no store behind this")))
}

pub(crate) mod memory {
    pub(crate) use super::nothing as get;
    pub(crate) use super::nothing as around;
    use super::*;

    pub(crate) fn add<R>(c: &Context, p: AddParams) -> Result<R, RpcError> {
        let space = validate::space(&p.space)?;
        let mut items = p.items;
        if let Some(key) = &p.idempotency_key {
            validate::key(key, p.on_conflict, &c.service.limits)?;
            let _ = validate::request(key, &items);
            validate::name_items(&space, key, &mut items);
        }
        let items = validate::items(items, &c.service.limits)?;
        for item in &items {
            assert!(!item.id.is_empty() && item.id.len() <= c.service.limits.id_bytes);
            assert!(item.text.len() <= c.service.limits.text_bytes);
            if let Some(meta) = &item.meta {
                let value: Value = serde_json::from_str(meta).expect("meta that is taken is JSON");
                assert!(value.is_object() && !meta.contains(['\n', '\r']));
            }
        }
        checked(Ok(items))
    }

    pub(crate) fn list<R>(_: &Context, p: ListParams) -> Result<R, RpcError> {
        checked(validate::filter(p.filter.as_ref()))
    }

    pub(crate) fn update<R>(c: &Context, p: UpdateParams) -> Result<R, RpcError> {
        checked(validate::patch(p.patch, &c.service.limits))
    }

    pub(crate) fn delete<R>(c: &Context, p: DeleteParams) -> Result<R, RpcError> {
        validate::filter(p.filter.as_ref())?;
        checked(validate::ids(&p.ids.unwrap_or_default(), &c.service.limits))
    }
}

pub(crate) mod search {
    pub(crate) use super::nothing as context;
    use super::*;

    pub(crate) fn search<R>(c: &Context, p: SearchParams) -> Result<R, RpcError> {
        validate::number("k", p.k, 1, c.service.limits.k)?;
        validate::deadline(p.deadline_ms, &c.service.limits)?;
        validate::filter(p.filter.as_ref())?;
        checked(validate::time(p.time))
    }
}

pub(crate) mod transfer {
    pub(crate) use super::{nothing as export, nothing as import};
}

pub(crate) mod health {
    pub(crate) use super::nothing as health;
}

pub(crate) mod admin {
    use super::*;
    pub(crate) use super::{
        nothing as compact, nothing as metrics, nothing as shutdown, nothing as space_drop,
        nothing as space_list, nothing as space_stats, nothing as status, nothing as sync,
        nothing as verify,
    };

    pub(crate) fn snapshot<R>(_: &Context, p: SnapshotParams) -> Result<R, RpcError> {
        checked(validate::path(&p.path))
    }
}
