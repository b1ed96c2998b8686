//! A small writer for ONNX graphs: constants, nodes, inputs, outputs.
//!
//! Invariant: names are unique because callers name nodes after their first output. It must not know any model.

use prost::Message;
use prost::bytes::Bytes;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
    data_type,
};

/// The operator domain of ONNX Runtime's fused operators.
pub const MICROSOFT: &str = "com.microsoft";
/// The domain of standard operators.
pub const ONNX: &str = "";

/// The domain of Flashbulb's own operators.
pub const FLASHBULB: &str = "flashbulb";

/// A dimension of a graph input or output.
pub enum Dim {
    /// A fixed length.
    Fixed(usize),
    /// A length known only at run time.
    Named(&'static str),
}

/// An operator's parameter.
pub enum Attr<'a> {
    /// One float.
    Float(&'a str, f32),
    /// One integer.
    Int(&'a str, i64),
    /// A list of integers.
    Ints(&'a str, &'a [i64]),
}

/// A graph being written.
#[derive(Default)]
pub struct GraphWriter {
    graph: GraphProto,
}

impl GraphWriter {
    /// An f32 constant of `shape`, row-major.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, shape, data_type::FLOAT, raw);
    }

    /// An i8 constant of `shape`, row-major.
    pub fn bytes(&mut self, name: &str, shape: &[usize], values: &[i8]) {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, shape, data_type::INT8, raw);
    }

    /// An i64 constant of one dimension.
    pub fn ints(&mut self, name: &str, values: &[i64]) {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, &[values.len()], data_type::INT64, raw);
    }

    /// An i64 scalar.
    pub fn int(&mut self, name: &str, value: i64) {
        self.constant(name, &[], data_type::INT64, value.to_le_bytes().to_vec());
    }

    fn constant(&mut self, name: &str, shape: &[usize], data_type: i32, raw: Vec<u8>) {
        self.graph.initializer.push(TensorProto {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: Some(data_type),
            name: Some(name.to_owned()),
            raw_data: Some(raw.into()),
        });
    }

    /// A node named after its first output. An empty input name leaves that optional input out.
    pub fn node(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Attr<'_>],
    ) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|&s| s.to_owned()).collect(),
            output: outputs.iter().map(|&s| s.to_owned()).collect(),
            name: outputs.first().map(|&s| s.to_owned()),
            op_type: Some(op.to_owned()),
            attribute: attributes.iter().map(attribute).collect(),
            domain: Some(domain.to_owned()),
        });
    }

    /// An i32 input.
    pub fn input(&mut self, name: &str, shape: &[Dim]) {
        self.graph.input.push(value(name, data_type::INT32, shape));
    }

    /// An f32 output.
    pub fn output(&mut self, name: &str, shape: &[Dim]) {
        self.graph.output.push(value(name, data_type::FLOAT, shape));
    }

    /// The finished model file.
    pub fn finish(mut self, name: &str) -> Vec<u8> {
        self.graph.name = Some(name.to_owned());
        let mut opsets = vec![opset(ONNX, 17), opset(MICROSOFT, 1)];
        // A runtime without the operators still opens a graph that uses none of them.
        if self.graph.node.iter().any(|node| node.domain.as_deref() == Some(FLASHBULB)) {
            opsets.push(opset(FLASHBULB, 1));
        }
        ModelProto {
            ir_version: Some(8),
            producer_name: Some("flashbulb".to_owned()),
            graph: Some(self.graph),
            opset_import: opsets,
        }
        .encode_to_vec()
    }
}

/// A large constant of a written graph.
pub struct Constant {
    /// The name that nodes know it by.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<i64>,
    /// Its elements, row-major.
    pub values: Values,
}

/// The elements of a [`Constant`], row-major and little-endian, in the memory of the file that they are from.
pub enum Values {
    /// 32-bit floats.
    Floats(Bytes),
    /// Signed bytes.
    Bytes(Bytes),
}

/// The float and byte constants of a graph that Flashbulb wrote, from `least_bytes` on.
///
/// # Errors
/// The bytes are no such graph.
pub fn large_constants(file: Bytes, least_bytes: usize) -> Result<Vec<Constant>, String> {
    let model = ModelProto::decode(file).map_err(|error| format!("no ONNX file: {error}"))?;
    let initializers = model.graph.map(|graph| graph.initializer).unwrap_or_default();
    let large = initializers.into_iter().filter_map(|tensor| {
        let raw = tensor.raw_data.filter(|raw| raw.len() >= least_bytes)?;
        let values = match tensor.data_type {
            Some(data_type::FLOAT) => Values::Floats(raw),
            Some(data_type::INT8) => Values::Bytes(raw),
            _ => return None,
        };
        Some(Constant { name: tensor.name.unwrap_or_default(), shape: tensor.dims, values })
    });
    Ok(large.collect())
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) }
}

fn attribute(attr: &Attr<'_>) -> AttributeProto {
    let (name, kind) = match *attr {
        Attr::Float(name, _) => (name, attribute_type::FLOAT),
        Attr::Int(name, _) => (name, attribute_type::INT),
        Attr::Ints(name, _) => (name, attribute_type::INTS),
    };
    let mut proto = AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(kind),
        ..AttributeProto::default()
    };
    match *attr {
        Attr::Float(_, value) => proto.f = Some(value),
        Attr::Int(_, value) => proto.i = Some(value),
        Attr::Ints(_, values) => proto.ints = values.to_vec(),
    }
    proto
}

fn value(name: &str, elem_type: i32, shape: &[Dim]) -> ValueInfoProto {
    let dim = shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(length) => {
                DimensionProto { dim_value: Some(*length as i64), dim_param: None }
            }
            Dim::Named(symbol) => {
                DimensionProto { dim_value: None, dim_param: Some((*symbol).to_owned()) }
            }
        })
        .collect();
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(elem_type),
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_written_graph_decodes_to_what_was_written() {
        let mut writer = GraphWriter::default();
        writer.input("ids", &[Dim::Named("b"), Dim::Named("s")]);
        writer.floats("w", &[2, 1], &[1.5, -2.0]);
        writer.node(ONNX, "Cast", &["ids"], &["x"], &[Attr::Int("to", 1)]);
        writer.output("x", &[Dim::Named("b"), Dim::Fixed(2)]);
        let model = ModelProto::decode(writer.finish("g").as_slice()).unwrap();
        let graph = model.graph.unwrap();
        assert_eq!(graph.node[0].op_type.as_deref(), Some("Cast"));
        assert_eq!(graph.node[0].attribute[0].i, Some(1));
        let raw = graph.initializer[0].raw_data.clone().unwrap();
        assert_eq!(raw, [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat());
        assert_eq!(graph.initializer[0].dims, [2, 1]);
        assert_eq!(graph.output.len(), 1);
    }
}
