//! The Python names that a pickle of tensors needs. Every other name is refused.

use entrenar_base::DType;

/// The elements of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    /// As safetensors names it.
    pub(super) name: &'static str,
    /// Bytes per element.
    pub(super) size: usize,
    /// What arrays hold them as: themselves, or i32 for the two that arrays do not know.
    pub(super) array: DType,
}

/// A name that is allowed. None of them is looked up anywhere: each stands for a few lines of the
/// machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    /// `(storage, offset, size, stride, …)` to a tensor.
    RebuildTensor,
    /// `(tensor, …)` to the tensor.
    RebuildParameter,
    /// `(sizes,)` to the tuple.
    Size,
    /// Arguments to something that is no tensor: a device, bytes written as text.
    Other,
    /// An element type by itself.
    DType,
    Storage(Element),
}

impl Global {
    /// The global of that name.
    pub(super) fn named(module: &str, name: &str) -> Option<Global> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Global::RebuildParameter
            }
            ("torch", "Size") => Global::Size,
            ("torch", "device") | ("_codecs", "encode") => Global::Other,
            ("torch" | "torch.cuda", storage) if storage.ends_with("Storage") => {
                Global::Storage(Element::of_storage(storage)?)
            }
            (
                "torch",
                "float64" | "float32" | "float16" | "bfloat16" | "int64" | "int32" | "int16"
                | "int8" | "uint8" | "bool",
            ) => Global::DType,
            _ => return None,
        })
    }
}

impl Element {
    fn of_storage(class: &str) -> Option<Element> {
        let (name, size, array) = match class {
            "DoubleStorage" => ("F64", 8, DType::F64),
            "FloatStorage" => ("F32", 4, DType::F32),
            "HalfStorage" => ("F16", 2, DType::F16),
            "BFloat16Storage" => ("BF16", 2, DType::BF16),
            "LongStorage" => ("I64", 8, DType::I64),
            "IntStorage" => ("I32", 4, DType::I32),
            "ShortStorage" => ("I16", 2, DType::I32),
            "CharStorage" => ("I8", 1, DType::I8),
            "ByteStorage" => ("U8", 1, DType::U8),
            "BoolStorage" => ("BOOL", 1, DType::Bool),
            _ => return None,
        };
        Some(Element { name, size, array })
    }
}

/// The name of an opcode that the machine does not have, for the message that refuses it.
pub(super) fn opcode_name(code: u8) -> &'static str {
    match code {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'd' => "DICT",
        b'g' => "GET",
        b'i' => "INST",
        b'l' => "LIST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x81 => "NEWOBJ",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "unknown",
    }
}
