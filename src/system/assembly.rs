//! What clients are offered.
//!
//! Owns: which tools a system has, in which order, and what they and the connections share. May not know: actors, but for
//! where they are reached.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::own_tools::{HealthTool, TelemetryTool};
use super::{INSTRUCTIONS, OwnTools};
use crate::actors::connections::Served;
use crate::actors::current::Current;
use crate::actors::health::HealthSource;
use crate::actors::jobs::messages::JobsMsg;
use crate::actors::rollout::RolloutHandle;
use crate::actors::session::Gauges;
use crate::actors::workers::messages::WorkersMsg;
use crate::agents::{AgentNames, AgentRegistry};
use crate::base::ids::HostId;
use crate::config::Config;
use crate::config::clients::{self, Clients};
use crate::failpoints::Faults;
use crate::jobs::client::JobsHandle;
use crate::places::Places;
use crate::protocol::catalog::{CallRoom, Catalog, Define};
use crate::protocol::session::SessionLimits;
use crate::protocol::wire::Identity;
use crate::telemetry::TelemetryHandle;
use crate::tools::consult::{ConsultTool, Consults};
use crate::tools::readers::{CancelTool, JobTool, JobsTool};
use crate::tools::roots::RootsHandle;
use crate::tools::tasks::TaskDesk;
use crate::tools::{Target, Tool};

/// What the tools are made from.
pub(super) struct Assembly {
    pub(super) host: HostId,
    pub(super) started: Instant,
    pub(super) config: Arc<Config>,
    pub(super) agents: AgentRegistry,
    pub(super) nesting: (Option<crate::base::ids::ChainId>, u32),
    pub(super) default_cwd: Option<PathBuf>,
    pub(super) places: Places,
    pub(super) telemetry: TelemetryHandle,
    pub(super) observed: Option<PathBuf>,
    pub(super) extra: Vec<Arc<dyn Tool>>,
    pub(super) offered: OwnTools,
    /// Whether the consult tools are among them.
    pub(super) consults: bool,
    pub(super) session_limits: SessionLimits,
    pub(super) line_limit: usize,
    pub(super) faults: Faults,
    pub(super) rollout: RolloutHandle,
    /// For health.
    pub(super) notices: Vec<String>,
}

impl Assembly {
    pub(super) fn served(
        self,
        workers: Current<WorkersMsg>,
        jobs: JobsHandle,
        jobs_actor: Current<JobsMsg>,
    ) -> (Served, (Consults, HealthSource)) {
        let gauges = Arc::new(Gauges::default());
        let health = HealthSource {
            gauges: Arc::clone(&gauges),
            host: self.host,
            started: self.started,
            workers: workers.clone(),
            jobs: jobs.clone(),
            telemetry: self.telemetry.clone(),
            config: Arc::clone(&self.config),
            faults: self.faults.clone(),
            rollout: self.rollout.clone(),
            notices: self.notices.into(),
        };
        let desk = Consults {
            jobs,
            agents: AgentNames::new(self.agents.names()),
            clients: Clients::new(Arc::clone(&self.config), self.observed),
            config: self.config,
            default_cwd: self.default_cwd,
            places: Arc::new(self.places),
            roots: RootsHandle::default(),
            nesting: self.nesting,
        };
        let mut tools: Vec<Arc<dyn Tool>> = Vec::new();
        if self.consults {
            tools.push(Arc::new(ConsultTool::new(desk.clone())));
            tools.push(Arc::new(JobTool::new(desk.clone())));
            tools.push(Arc::new(JobsTool::new(desk.clone())));
            tools.push(Arc::new(CancelTool::new(desk.clone())));
        }
        if self.offered == OwnTools::All {
            tools.push(Arc::new(HealthTool::new(health.clone())));
            tools.push(Arc::new(TelemetryTool::new(health.clone())));
        }
        tools.extend(self.extra);
        // They tell when to use `consult`; where it is not offered there is nothing to tell.
        let instructions = if self.consults { INSTRUCTIONS } else { "" };
        let entries = tools
            .iter()
            .map(|tool| {
                let define: Define = {
                    let tool = Arc::clone(tool);
                    Arc::new(move || tool.definition())
                };
                // What tells how a stuck worker is, and ends what it does, must not wait behind its calls.
                let room = if tool.target() == Target::Host { CallRoom::Kept } else { CallRoom::Shared };
                (tool.name().to_owned(), room, define)
            })
            .collect();
        let served = Served {
            host: self.host,
            catalog: Arc::new(Catalog::new(entries).with_tasks(tools.iter().map(|tool| tool.tasks()))),
            tools: tools.into(),
            identity: Arc::new(Identity::new("phone-opus", env!("CARGO_PKG_VERSION"), instructions)),
            limits: SessionLimits { structured: clients::tells_structured, ..self.session_limits },
            line_limit: self.line_limit,
            workers,
            jobs: jobs_actor,
            telemetry: self.telemetry,
            gauges,
            faults: self.faults,
            clients: desk.clients.clone(),
            roots: desk.roots.clone(),
            tasks: self.consults.then(|| TaskDesk::new(desk.clone())),
            rollout: self.rollout,
        };
        (served, (desk, health))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;
    use crate::base::state_dir::StateDir;
    use crate::protocol::wire::ToolReply;
    use crate::system::{Grace, Shutdown, System, SystemBuilder};
    use crate::tools::{Annotations, ToolCall, ToolDefinition, ToolFuture};

    struct Own;

    impl Tool for Own {
        fn name(&self) -> &str {
            "own"
        }

        fn definition(&self) -> ToolDefinition {
            ToolDefinition {
                name: "own".to_owned(),
                title: String::new(),
                description: String::new(),
                input_schema: serde_json::json!({"type": "object"}),
                annotations: Annotations { read_only: true, destructive: false, idempotent: true, open_world: false },
                meta: None,
            }
        }

        fn call(&self, _call: ToolCall) -> ToolFuture {
            Box::pin(async { Ok(ToolReply::text("done")) })
        }
    }

    /// What the handshake and the list say.
    async fn said(builder: SystemBuilder) -> (serde_json::Value, Vec<String>) {
        let system = builder.tool(Own).start().await.expect("it starts");
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(server);
        let serving = tokio::spawn({
            let system = system.clone();
            async move { system.serve(reader, writer).await }
        });
        let (from, mut to) = tokio::io::split(client);
        let requests = concat!(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#,
            "\n",
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#,
            "\n"
        );
        to.write_all(requests.as_bytes()).await.expect("it is taken");
        let mut lines = BufReader::new(from).lines();
        let mut reply = async || -> serde_json::Value {
            let line = lines.next_line().await.expect("it answers").expect("a line");
            serde_json::from_str(&line).expect("JSON")
        };
        let (initialized, listed) = (reply().await, reply().await);
        let tools = listed["result"]["tools"].as_array().expect("a list");
        let names = tools.iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect();
        assert!(matches!(system.shutdown(Grace::default()).await, Shutdown::InOrder));
        serving.await.expect("no panic").expect("it was served");
        (initialized["result"].clone(), names)
    }

    #[tokio::test]
    async fn an_embedder_may_offer_its_own_tools_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let whole = || System::builder().state_dir(StateDir::at(dir.path())).runner("phone-opus");
        let (all, names) = said(whole()).await;
        assert!(all["instructions"].as_str().is_some_and(|text| text.contains("consult")), "{all}");
        assert_eq!(names[..6], crate::tools::NAMES);
        assert_eq!(names[6..], ["own"]);
        let (none, names) = said(whole().own_tools(OwnTools::None)).await;
        assert_eq!(names, ["own"]);
        assert!(none.get("instructions").is_none(), "{none}");
        let (no_consults, names) = said(System::builder()).await;
        assert_eq!(names, ["health_snapshot", "telemetry_snapshot", "own"]);
        assert!(no_consults.get("instructions").is_none(), "{no_consults}");
    }
}
