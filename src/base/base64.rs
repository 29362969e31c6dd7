//! Bytes inside JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes as standard padded base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base64(pub Bytes);

/// Appends the text of these bytes.
pub(crate) fn append(text: &mut Vec<u8>, bytes: &[u8]) {
    let at = text.len();
    let length = base64::encoded_len(bytes.len(), true).unwrap_or_default();
    text.resize(at + length, 0);
    // There is room for exactly that, so it cannot be refused.
    let written = STANDARD.encode_slice(bytes, &mut text[at..]).unwrap_or_default();
    text.truncate(at + written);
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map(|bytes| Self(bytes.into())).map_err(serde::de::Error::custom)
    }
}
