//! The filter language: a small JSON tree over `role`, `session` and `meta.*`.
//!
//! Invariant: what parses has a meaning; an unknown field, operator or shape is an error with its place. A field that is
//! absent matches `ne`, `nin` and `exists: false`, and nothing else. Knows nothing of where memories lie.

use std::cmp::Ordering;

use serde_json::Value;

/// Deepest nesting of `and`, `or` and `not`.
pub const FILTER_DEPTH_MAX: usize = 32;
/// Most conditions in one filter.
pub const FILTER_NODES_MAX: usize = 1024;

/// Why a filter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter{at}: {why}")]
pub struct FilterError {
    /// The place in the filter, such as `.and[1].role`.
    pub at: String,
    /// What is wrong and what is allowed.
    pub why: String,
}

/// A parsed filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    root: Node,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Test { field: Field, op: Op },
}

/// What a condition looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Role,
    Session,
    /// Keys from the meta object inwards.
    Meta(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Op {
    Eq(Value),
    Ne(Value),
    In(Vec<Value>),
    Nin(Vec<Value>),
    Order { want: Order, than: Value },
    Exists(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Gt,
    Gte,
    Lt,
    Lte,
}

/// What a filter may ask of a memory; text fields are borrowed, meta is parsed only if a condition asks.
pub(crate) trait Subject {
    fn role(&self) -> Option<&str>;
    fn session(&self) -> Option<&str>;
    /// The meta object, `None` if there is none.
    fn meta(&self) -> Option<&Value>;
}

impl Filter {
    /// Reads a filter from JSON, such as `{"and": [{"session": {"eq": "s1"}}, {"meta.tag": {"in": ["a", "b"]}}]}`.
    /// Several keys in one object must all hold.
    ///
    /// # Errors
    /// [`FilterError`] with the place of the first thing that is not part of the language.
    pub fn parse(json: &Value) -> Result<Filter, FilterError> {
        let mut nodes = 0;
        let root = node(json, String::new(), 0, &mut nodes)?;
        Ok(Filter { root })
    }

    pub(crate) fn matches(&self, subject: &dyn Subject) -> bool {
        eval(&self.root, subject)
    }
}

fn fail<T>(at: impl Into<String>, why: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError { at: at.into(), why: why.into() })
}

fn node(json: &Value, at: String, depth: usize, nodes: &mut usize) -> Result<Node, FilterError> {
    if depth > FILTER_DEPTH_MAX {
        return fail(at, format!("nested deeper than {FILTER_DEPTH_MAX} levels"));
    }
    *nodes += 1;
    if *nodes > FILTER_NODES_MAX {
        return fail(at, format!("more than {FILTER_NODES_MAX} conditions"));
    }
    let Value::Object(map) = json else {
        return fail(at, format!("must be an object, not {}", kind(json)));
    };
    if map.is_empty() {
        return fail(at, "an empty object says nothing; leave the filter out to match all");
    }
    let mut all = Vec::with_capacity(map.len());
    for (key, value) in map {
        let at = format!("{at}.{key}");
        all.push(match key.as_str() {
            "and" => Node::And(list(value, &at, depth, nodes)?),
            "or" => Node::Or(list(value, &at, depth, nodes)?),
            "not" => Node::Not(Box::new(node(value, at, depth + 1, nodes)?)),
            field => test(field, value, at)?,
        });
    }
    Ok(if all.len() == 1 { all.remove(0) } else { Node::And(all) })
}

fn list(json: &Value, at: &str, depth: usize, nodes: &mut usize) -> Result<Vec<Node>, FilterError> {
    match json {
        Value::Array(items) if !items.is_empty() => items
            .iter()
            .enumerate()
            .map(|(i, item)| node(item, format!("{at}[{i}]"), depth + 1, nodes))
            .collect(),
        _ => fail(at, format!("must be a list with at least one filter, not {}", kind(json))),
    }
}

fn test(field: &str, value: &Value, at: String) -> Result<Node, FilterError> {
    let field = match field {
        "role" => Field::Role,
        "session" => Field::Session,
        meta => match meta.strip_prefix("meta.") {
            Some(path) if path.split('.').all(|key| !key.is_empty()) => {
                Field::Meta(path.split('.').map(str::to_owned).collect())
            }
            _ => return fail(at, "unknown field; known are role, session, meta.KEY, and, or, not"),
        },
    };
    let Value::Object(ops) = value else {
        return fail(
            at,
            format!("must be an object of operators such as {{\"eq\": …}}, not {}", kind(value)),
        );
    };
    if ops.is_empty() {
        return fail(at, "has no operator; known are eq ne in nin gt gte lt lte exists");
    }
    let mut all = Vec::with_capacity(ops.len());
    for (name, operand) in ops {
        let op = operator(name, operand, format!("{at}.{name}"))?;
        all.push(Node::Test { field: field.clone(), op });
    }
    Ok(if all.len() == 1 { all.remove(0) } else { Node::And(all) })
}

fn operator(name: &str, operand: &Value, at: String) -> Result<Op, FilterError> {
    let order = |want| match operand {
        Value::Number(_) | Value::String(_) => Ok(Op::Order { want, than: operand.clone() }),
        other => fail(at.clone(), format!("must be a number or a string, not {}", kind(other))),
    };
    let values = || match operand {
        Value::Array(items) if items.len() <= FILTER_NODES_MAX => Ok(items.clone()),
        Value::Array(_) => fail(at.clone(), format!("more than {FILTER_NODES_MAX} values")),
        other => fail(at.clone(), format!("must be a list of values, not {}", kind(other))),
    };
    match name {
        "eq" => Ok(Op::Eq(operand.clone())),
        "ne" => Ok(Op::Ne(operand.clone())),
        "in" => Ok(Op::In(values()?)),
        "nin" => Ok(Op::Nin(values()?)),
        "gt" => order(Order::Gt),
        "gte" => order(Order::Gte),
        "lt" => order(Order::Lt),
        "lte" => order(Order::Lte),
        "exists" => match operand {
            Value::Bool(wanted) => Ok(Op::Exists(*wanted)),
            other => fail(at, format!("must be true or false, not {}", kind(other))),
        },
        _ => fail(at, "unknown operator; known are eq ne in nin gt gte lt lte exists"),
    }
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(a) if a.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn eval(node: &Node, s: &dyn Subject) -> bool {
    match node {
        Node::And(all) => all.iter().all(|n| eval(n, s)),
        Node::Or(any) => any.iter().any(|n| eval(n, s)),
        Node::Not(n) => !eval(n, s),
        Node::Test { field: Field::Role, op } => eval_text(op, s.role()),
        Node::Test { field: Field::Session, op } => eval_text(op, s.session()),
        Node::Test { field: Field::Meta(path), op } => {
            let found = path.iter().try_fold(s.meta(), |v, key| v.map(|v| v.get(key)));
            eval_value(op, found.flatten())
        }
    }
}

/// Text fields are compared without making a `Value` of them: this runs once a candidate.
fn eval_text(op: &Op, text: Option<&str>) -> bool {
    let is = |v: &Value| match (v, text) {
        (Value::String(v), Some(text)) => v == text,
        (Value::Null, None) => true,
        _ => false,
    };
    match op {
        Op::Eq(v) => is(v),
        Op::Ne(v) => !is(v),
        Op::In(vs) => vs.iter().any(is),
        Op::Nin(vs) => !vs.iter().any(is),
        Op::Exists(wanted) => text.is_some() == *wanted,
        Op::Order { want, than } => match (text, than) {
            (Some(text), Value::String(than)) => holds(*want, text.cmp(than)),
            _ => false,
        },
    }
}

fn eval_value(op: &Op, found: Option<&Value>) -> bool {
    let is = |v: &Value| match found {
        Some(found) => same(found, v),
        None => v.is_null(),
    };
    match op {
        Op::Eq(v) => is(v),
        Op::Ne(v) => !is(v),
        Op::In(vs) => vs.iter().any(is),
        Op::Nin(vs) => !vs.iter().any(is),
        Op::Exists(wanted) => found.is_some() == *wanted,
        Op::Order { want, than } => {
            found.and_then(|f| compare(f, than)).is_some_and(|o| holds(*want, o))
        }
    }
}

fn holds(want: Order, is: Ordering) -> bool {
    match want {
        Order::Gt => is.is_gt(),
        Order::Gte => is.is_ge(),
        Order::Lt => is.is_lt(),
        Order::Lte => is.is_le(),
    }
}

/// Equality of JSON values in which 1 and 1.0 are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => compare(a, b) == Some(Ordering::Equal),
        (Value::Array(x), Value::Array(y)) => {
            x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y))
        }
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len()
                && x.iter().all(|(key, v)| y.get(key).is_some_and(|other| same(v, other)))
        }
        _ => a == b,
    }
}

/// The order of two numbers or two strings; numbers compare exactly.
fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(x), Value::Number(y)) => {
            let exact = |n: &serde_json::Number| {
                n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from))
            };
            match (exact(x), exact(y)) {
                (Some(x), Some(y)) => Some(x.cmp(&y)),
                (Some(x), None) => whole_to_float(x, y.as_f64()?),
                (None, Some(y)) => whole_to_float(y, x.as_f64()?).map(Ordering::reverse),
                (None, None) => x.as_f64()?.partial_cmp(&y.as_f64()?),
            }
        }
        _ => None,
    }
}

/// The order of a whole number and a float, without rounding the number to a float first. It has at most 64 bits, so a
/// float beyond 128 may be cut to them.
fn whole_to_float(whole: i128, float: f64) -> Option<Ordering> {
    let by_fraction = 0.0.partial_cmp(&float.fract())?;
    Some(whole.cmp(&(float as i128)).then(by_fraction))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    struct M(Option<&'static str>, Option<&'static str>, Option<Value>);

    impl Subject for M {
        fn role(&self) -> Option<&str> {
            self.0
        }
        fn session(&self) -> Option<&str> {
            self.1
        }
        fn meta(&self) -> Option<&Value> {
            self.2.as_ref()
        }
    }

    fn check(filter: Value, expected: bool) {
        let m = M(
            Some("user"),
            None,
            Some(
                json!({"n": 5, "f": 1.5, "big": 9007199254740993u64, "s": "b", "o": {"k": [1, 2]}, "z": null}),
            ),
        );
        assert_eq!(Filter::parse(&filter).unwrap().matches(&m), expected, "{filter}");
    }

    #[test]
    fn conditions_hold_or_not() {
        for (filter, expected) in [
            (json!({"role": {"eq": "user"}}), true),
            (json!({"role": {"ne": "user"}}), false),
            (json!({"role": {"in": ["a", "user"]}}), true),
            (json!({"role": {"in": []}}), false),
            (json!({"role": {"nin": []}}), true),
            (json!({"role": {"gt": "tool", "lt": "v"}}), true),
            (json!({"role": {"gt": 1}}), false),
            (json!({"session": {"exists": false}}), true),
            (json!({"session": {"eq": "s"}}), false),
            (json!({"session": {"ne": "s"}}), true),
            (json!({"session": {"lt": "s"}}), false),
            (json!({"meta.n": {"eq": 5.0}}), true),
            (json!({"meta.n": {"gte": 5, "lt": 5}}), false),
            (json!({"meta.n": {"lt": "6"}}), false),
            (json!({"meta.f": {"gt": 1}}), true),
            (json!({"meta.big": {"gt": 9007199254740992u64}}), true),
            (json!({"meta.big": {"eq": 9007199254740992u64}}), false),
            (json!({"meta.big": {"eq": 9007199254740992.0}}), false),
            (json!({"meta.big": {"gt": 9007199254740992.0, "lt": 9007199254740994.0}}), true),
            (json!({"meta.n": {"gt": 4.5, "lt": 5.5}}), true),
            (json!({"meta.n": {"gt": -1e308, "lt": 1e308}}), true),
            (json!({"meta.f": {"gt": 2}}), false),
            (json!({"meta.o.k": {"eq": [1.0, 2]}}), true),
            (json!({"meta.o": {"eq": {"k": [1]}}}), false),
            (json!({"meta.z": {"exists": true}}), true),
            (json!({"meta.z": {"eq": null}}), true),
            (json!({"meta.absent": {"exists": false}}), true),
            (json!({"meta.absent": {"nin": ["x"]}}), true),
            (json!({"meta.absent": {"gt": 0}}), false),
            (json!({"and": [{"role": {"eq": "user"}}, {"not": {"meta.n": {"eq": 6}}}]}), true),
            (json!({"or": [{"role": {"eq": "x"}}, {"meta.s": {"gte": "b"}}]}), true),
            (json!({"role": {"eq": "user"}, "meta.n": {"eq": 6}}), false),
        ] {
            check(filter, expected);
        }
    }

    #[test]
    fn what_is_not_the_language_is_refused_with_its_place() {
        for (bad, at) in [
            (json!({"role": {"like": "x"}}), ".role.like"),
            (json!({"role": "user"}), ".role"),
            (json!({"meta": {"eq": 1}}), ".meta"),
            (json!({"meta.": {"eq": 1}}), ".meta."),
            (json!({"and": {}}), ".and"),
            (json!({"and": []}), ".and"),
            (json!({"or": [{"role": {"eq": "a"}}, 3]}), ".or[1]"),
            (json!([]), ""),
            (json!("x"), ""),
            (json!({}), ""),
            (json!({"role": {}}), ".role"),
            (json!({"role": {"in": "user"}}), ".role.in"),
            (json!({"colour": {"eq": 1}}), ".colour"),
            (json!({"meta.a": {"gt": null}}), ".meta.a.gt"),
            (json!({"meta.a": {"exists": 1}}), ".meta.a.exists"),
        ] {
            assert_eq!(Filter::parse(&bad).unwrap_err().at, at, "{bad}");
        }
        let mut deep = json!({"role": {"eq": "a"}});
        for _ in 0..100 {
            deep = json!({"not": deep});
        }
        assert!(Filter::parse(&deep).unwrap_err().why.contains("deeper"));
        let wide = json!({"or": vec![json!({"role": {"eq": "a"}}); 2000]});
        assert!(Filter::parse(&wide).unwrap_err().why.contains("more than"));
    }
}
