//! The filter language as docs/protocol.md tells it, evaluated straight on the JSON.
//!
//! Invariant: nothing of the engine's filter is used but its two limits. Numbers are compared as decimal digits, so exactly.

use std::cmp::Ordering;

use flashbulb_engine::{FILTER_DEPTH_MAX, FILTER_NODES_MAX};
use serde_json::{Map, Number, Value};

/// What a filter looks at.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    /// Who said it.
    pub role: Option<String>,
    /// The conversation.
    pub session: Option<String>,
    /// An object.
    pub meta: Option<Value>,
}

/// Whether the filter holds; `None` if it is not of the language.
#[must_use]
pub fn holds(filter: &Value, of: &Fields) -> Option<bool> {
    node(filter, of, 0, &mut 0)
}

/// Every condition is looked at, so that what is not of the language is seen wherever it stands.
fn node(filter: &Value, of: &Fields, depth: usize, nodes: &mut usize) -> Option<bool> {
    *nodes += 1;
    let members = filter.as_object().filter(|m| !m.is_empty())?;
    if depth > FILTER_DEPTH_MAX || *nodes > FILTER_NODES_MAX {
        return None;
    }
    let mut all = true;
    for (key, value) in members {
        all &= match key.as_str() {
            "and" => each(value, of, depth, nodes)?.into_iter().all(|holds| holds),
            "or" => each(value, of, depth, nodes)?.into_iter().any(|holds| holds),
            "not" => !node(value, of, depth + 1, nodes)?,
            field => conditions(value, &found(field, of)?)?,
        };
    }
    Some(all)
}

fn each(list: &Value, of: &Fields, depth: usize, nodes: &mut usize) -> Option<Vec<bool>> {
    let list = list.as_array().filter(|list| !list.is_empty())?;
    list.iter().map(|one| node(one, of, depth + 1, nodes)).collect()
}

/// The field's value, the inner `None` where it is absent.
fn found(field: &str, of: &Fields) -> Option<Option<Value>> {
    match field {
        "role" => return Some(of.role.clone().map(Value::from)),
        "session" => return Some(of.session.clone().map(Value::from)),
        _ => {}
    }
    let mut at = of.meta.as_ref();
    for key in field.strip_prefix("meta.")?.split('.') {
        if key.is_empty() {
            return None;
        }
        at = at.and_then(Value::as_object).and_then(|object| object.get(key));
    }
    Some(at.cloned())
}

fn conditions(operators: &Value, found: &Option<Value>) -> Option<bool> {
    let operators: &Map<String, Value> = operators.as_object().filter(|m| !m.is_empty())?;
    let mut all = true;
    for (operator, operand) in operators {
        all &= condition(operator, operand, found.as_ref())?;
    }
    Some(all)
}

fn condition(operator: &str, operand: &Value, found: Option<&Value>) -> Option<bool> {
    // "An absent field matches `ne`, `nin`, `exists: false` and `eq: null`, and nothing else" of operand kinds that are not null.
    let is = |wanted: &Value| found.map_or(wanted.is_null(), |found| equal(found, wanted));
    let order = |holds: fn(Ordering) -> bool| {
        let comparable = operand.is_number() || operand.is_string();
        comparable.then(|| found.and_then(|found| order(found, operand)).is_some_and(holds))
    };
    let any = || {
        operand
            .as_array()
            .filter(|list| list.len() <= FILTER_NODES_MAX)
            .map(|list| list.iter().any(is))
    };
    match operator {
        "eq" => Some(is(operand)),
        "ne" => Some(!is(operand)),
        "in" => any(),
        "nin" => any().map(|any| !any),
        "gt" => order(Ordering::is_gt),
        "gte" => order(Ordering::is_ge),
        "lt" => order(Ordering::is_lt),
        "lte" => order(Ordering::is_le),
        "exists" => operand.as_bool().map(|wanted| found.is_some() == wanted),
        _ => None,
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (Value::Number(_), Value::Number(_)) => order(a, b) == Some(Ordering::Equal),
        _ => a == b,
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Value::Number(a), Value::Number(b)) => Some(numbers(a, b)),
        _ => None,
    }
}

fn numbers(a: &Number, b: &Number) -> Ordering {
    let (a, b) = (Digits::of(a), Digits::of(b));
    match (a.negative, b.negative) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, false) => a.size(&b),
        (true, true) => b.size(&a),
    }
}

/// A number in decimal, every digit of it.
struct Digits {
    negative: bool,
    whole: String,
    fraction: String,
}

impl Digits {
    fn of(number: &Number) -> Digits {
        let text = match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(n), ..) => n.to_string(),
            (_, Some(n), _) => n.to_string(),
            // Rust writes as many digits as are asked for, and no f64 has more than these behind the point.
            (.., float) => format!("{:.1074}", float.unwrap_or_default()),
        };
        let (sign, digits) = text.strip_prefix('-').map_or((false, &*text), |rest| (true, rest));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let is_zero = whole.is_empty() && fraction.is_empty();
        Digits { negative: sign && !is_zero, whole: whole.into(), fraction: fraction.into() }
    }

    fn size(&self, other: &Digits) -> Ordering {
        let whole =
            self.whole.len().cmp(&other.whole.len()).then_with(|| self.whole.cmp(&other.whole));
        whole.then_with(|| self.fraction.cmp(&other.fraction))
    }
}
