//! The methods of a client's requests, and the revisions they exist in.
//!
//! Owns: their names. May not know: what they do.

use super::version::Version;

/// A method we serve in some revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `initialize`.
    Initialize,
    /// `ping`.
    Ping,
    /// `server/discover`.
    Discover,
    /// `tools/list`.
    ToolsList,
    /// `tools/call`.
    ToolsCall,
    /// `subscriptions/listen`.
    Listen,
    /// `tasks/get`.
    TasksGet,
    /// `tasks/result`.
    TasksResult,
    /// `tasks/list`.
    TasksList,
    /// `tasks/cancel`.
    TasksCancel,
    /// `tasks/update`.
    TasksUpdate,
}

impl Method {
    /// Every method, the frequent ones first.
    pub const ALL: [Self; 11] = [
        Self::ToolsCall,
        Self::Ping,
        Self::ToolsList,
        Self::Initialize,
        Self::Discover,
        Self::Listen,
        Self::TasksGet,
        Self::TasksResult,
        Self::TasksList,
        Self::TasksCancel,
        Self::TasksUpdate,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Ping => "ping",
            Self::Discover => "server/discover",
            Self::ToolsList => "tools/list",
            Self::ToolsCall => "tools/call",
            Self::Listen => "subscriptions/listen",
            Self::TasksGet => "tasks/get",
            Self::TasksResult => "tasks/result",
            Self::TasksList => "tasks/list",
            Self::TasksCancel => "tasks/cancel",
            Self::TasksUpdate => "tasks/update",
        }
    }

    /// The method of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }

    /// Whether a revision has it.
    #[must_use]
    pub fn exists_in(self, version: Version) -> bool {
        let modern = version == Version::MODERN;
        match self {
            Self::ToolsList | Self::ToolsCall => true,
            Self::Initialize | Self::Ping => !modern,
            Self::Discover | Self::Listen | Self::TasksUpdate => modern,
            Self::TasksGet | Self::TasksCancel => version >= Version::V2025_11_25,
            Self::TasksResult | Self::TasksList => version == Version::V2025_11_25,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_revision_has_the_methods_of_the_specification() {
        let old = ["initialize", "ping", "tools/call", "tools/list"];
        let tasks = ["initialize", "ping", "tasks/cancel", "tasks/get", "tasks/list", "tasks/result", "tools/call"];
        let modern =
            ["server/discover", "subscriptions/listen", "tasks/cancel", "tasks/get", "tasks/update", "tools/call"];
        for version in Version::ALL {
            let mut got: Vec<&str> =
                Method::ALL.iter().filter(|method| method.exists_in(version)).map(|method| method.as_str()).collect();
            got.sort_unstable();
            let mut want = match version {
                Version::V2025_11_25 => tasks.to_vec(),
                Version::V2026_07_28 => modern.to_vec(),
                _ => old[..3].to_vec(),
            };
            want.push("tools/list");
            assert_eq!(got, want, "{version:?}");
        }
        assert_eq!(Method::parse("prompts/list"), None);
        assert!(Method::ALL.into_iter().all(|method| Method::parse(method.as_str()) == Some(method)));
    }
}
