//! A naive model of one space: a map, a filter evaluator written from the protocol, and brute force in f64.
//!
//! Invariant: it is as simple as can be, so that a difference is the service's fault. It must not know how the
//! service stores, indexes or plans anything.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::data::{T0, cosine, vector};

/// What a memory holds. Optional parts are those whose absence the protocol gives a meaning.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    pub text: String,
    pub role: String,
    pub session: String,
    pub ts: i64,
    pub n: i64,
    pub tag: String,
    pub flag: bool,
    pub opt: Option<i64>,
    pub vector_seed: u64,
}

impl Memory {
    pub fn meta(&self) -> Value {
        let mut meta = json!({"n": self.n, "tag": self.tag, "flag": self.flag});
        if let Some(opt) = self.opt {
            meta["opt"] = json!(opt);
        }
        meta
    }

    pub fn item(&self, id: &str) -> Value {
        json!({
            "id": id, "text": self.text, "role": self.role, "session": self.session, "ts": self.ts,
            "meta": self.meta(), "vector": vector(self.vector_seed),
        })
    }

    /// Fails the test unless an answered memory is this one.
    #[track_caller]
    pub fn assert_same(&self, id: &str, answered: &Value) {
        let want = json!([id, self.text, self.role, self.session, self.ts, self.meta()]);
        let got = ["id", "text", "role", "session", "ts", "meta"].map(|k| answered[k].clone());
        assert_eq!(Value::from(got.to_vec()), want);
    }

    fn field(&self, name: &str) -> Option<Value> {
        match name {
            "role" => Some(json!(self.role)),
            "session" => Some(json!(self.session)),
            "meta.n" => Some(json!(self.n)),
            "meta.tag" => Some(json!(self.tag)),
            "meta.flag" => Some(json!(self.flag)),
            "meta.opt" => self.opt.map(|o| json!(o)),
            other => panic!("the generator makes no field {other}"),
        }
    }
}

/// Whether a memory matches a filter of the protocol's language.
pub fn matches(filter: &Value, memory: &Memory) -> bool {
    let (key, arg) = filter.as_object().expect("an object").iter().next().expect("one member");
    match key.as_str() {
        "and" => arg.as_array().expect("a list").iter().all(|f| matches(f, memory)),
        "or" => arg.as_array().expect("a list").iter().any(|f| matches(f, memory)),
        "not" => !matches(arg, memory),
        field => {
            let value = memory.field(field);
            arg.as_object()
                .expect("operators")
                .iter()
                .all(|(op, want)| holds(value.as_ref(), op, want))
        }
    }
}

fn holds(value: Option<&Value>, op: &str, want: &Value) -> bool {
    if op == "exists" {
        return value.is_some() == want.as_bool().expect("a bool");
    }
    let Some(value) = value else { return false };
    let listed = || want.as_array().expect("a list").contains(value);
    let order = || value.as_i64().expect("an integer").cmp(&want.as_i64().expect("an integer"));
    match op {
        "eq" => value == want,
        "ne" => value != want,
        "in" => listed(),
        "nin" => !listed(),
        "gt" => order().is_gt(),
        "gte" => order().is_ge(),
        "lt" => order().is_lt(),
        "lte" => order().is_le(),
        other => panic!("the generator makes no operator {other}"),
    }
}

/// One search by vector.
#[derive(Debug, Clone)]
pub struct Query {
    pub vector_seed: u64,
    pub k: usize,
    pub filter: Option<Value>,
    /// From and to, as offsets from `T0`; the generator keeps `to` off every timestamp, which are multiples of ten.
    pub time: Option<(i64, i64)>,
}

impl Query {
    pub fn params(&self, space: &str) -> Value {
        let mut params = json!({"space": space, "vector": vector(self.vector_seed), "k": self.k});
        if let Some(filter) = &self.filter {
            params["filter"] = filter.clone();
        }
        if let Some((from, to)) = self.time {
            params["time"] = json!({"from": T0 + from, "to": T0 + to});
        }
        params
    }

    fn selects(&self, memory: &Memory) -> bool {
        let in_time = self.time.is_none_or(|(from, to)| (T0 + from..T0 + to).contains(&memory.ts));
        in_time && self.filter.as_ref().is_none_or(|f| matches(f, memory))
    }
}

/// Cosines closer than this count as a tie.
const TIE: f64 = 1e-4;

/// One space. A dropped or never filled space is `None` outside.
#[derive(Debug, Default)]
pub struct Model {
    pub held: BTreeMap<String, Memory>,
    /// Order as the service numbered it.
    pub order: BTreeMap<String, u64>,
    pub highest_seq: u64,
}

impl Model {
    pub fn by_order(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.held.keys().cloned().collect();
        ids.sort_by_key(|id| self.order[id]);
        ids
    }

    pub fn matching(&self, filter: &Value) -> Vec<String> {
        let all = self.by_order();
        all.into_iter().filter(|id| matches(filter, &self.held[id])).collect()
    }

    pub fn remove(&mut self, id: &str) -> bool {
        self.order.remove(id);
        self.held.remove(id).is_some()
    }

    /// Takes the seq the service answered: unchanged for what was there, above all others for what is new or was
    /// moved to the end.
    pub fn learn_seq(&mut self, id: &str, seq: u64, may_keep: bool) {
        let kept = may_keep && self.order.get(id) == Some(&seq);
        assert!(
            kept || seq > self.highest_seq,
            "{id} got seq {seq}, the highest before was {}",
            self.highest_seq
        );
        self.order.insert(id.to_owned(), seq);
    }

    /// Fails the test unless `hits` is an exact top k of what the query selects, ties aside.
    pub fn assert_top_k(&self, query: &Query, hits: &[Value]) {
        let asked = vector(query.vector_seed);
        let score = |id: &str| cosine(&asked, &vector(self.held[id].vector_seed));
        let chosen: Vec<&String> =
            self.held.iter().filter(|(_, m)| query.selects(m)).map(|(id, _)| id).collect();
        assert_eq!(hits.len(), chosen.len().min(query.k), "number of hits; {} match", chosen.len());
        let mut best: Vec<f64> = chosen.iter().map(|id| score(id)).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        let mut seen = Vec::new();
        for (rank, hit) in hits.iter().enumerate() {
            let id = hit["id"].as_str().expect("an id");
            assert!(chosen.iter().any(|c| *c == id), "{id} does not match");
            assert!(!seen.contains(&id), "{id} twice");
            self.held[id].assert_same(id, hit);
            assert_eq!(hit["seq"].as_u64(), Some(self.order[id]), "seq of {id}");
            assert!(
                score(id) >= best[rank] - TIE,
                "rank {rank}: {id} scores {}, {} is there",
                score(id),
                best[rank]
            );
            seen.push(id);
        }
        let scores: Vec<f64> = hits.iter().map(|h| h["score"].as_f64().expect("a score")).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "scores fall: {scores:?}");
    }
}
