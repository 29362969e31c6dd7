//! The tools that say how a system is: they ask every part, so they lie above all of them.
//!
//! Owns: the two snapshots as tools. May not know: what is in a snapshot.

use schemars::JsonSchema;

use crate::actors::health::HealthSource;
use crate::base::fault::Fault;
use crate::config::clients;
use crate::tools::arguments::ArgumentReader;
use crate::tools::callers::session_over;
use crate::tools::consult::shape;
use crate::tools::readers::{AT_ONCE, READS, definition, host_tool};
use crate::tools::reply::{self, Shape};
use crate::tools::{ToolCall, ToolReply};

/// The arguments of the snapshots.
#[derive(Debug, JsonSchema)]
#[expect(dead_code, reason = "the schema is generated from it")]
struct SnapshotArguments {
    /// How the text looks; porcelain when left out.
    #[schemars(extend("enum" = ["porcelain", "json"]))]
    render: Option<String>,
    /// How much is told; concise when left out.
    #[schemars(extend("enum" = ["concise", "full"]))]
    detail: Option<String>,
}

host_tool! {
    /// `health_snapshot`: how this server is.
    HealthTool(source: HealthSource), "health_snapshot", AT_ONCE, false,
    |me| definition::<SnapshotArguments>(me.name(), "Health", "How this server is: workers, jobs, store.", READS),
    health
}

fn snapshot_shape(call: &ToolCall) -> Result<Shape, Fault> {
    let mut args = ArgumentReader::parse(&call.arguments)?;
    let shape = shape(&mut args, clients::known(call.client.name().as_deref()));
    args.finish()?;
    Ok(shape)
}

async fn health(source: &HealthSource, call: ToolCall) -> Result<ToolReply, Fault> {
    let shape = snapshot_shape(&call)?;
    let caller = source.callers.of(call.invocation.session).ok_or_else(session_over)?;
    let mut value = source.health(&caller, shape.detail).await;
    reply::tidy(&mut value);
    Ok(reply::object(&value, serde_json::to_string_pretty(&value).unwrap_or_default(), shape))
}

host_tool! {
    /// `telemetry_snapshot`: what this server did.
    TelemetryTool(source: HealthSource), "telemetry_snapshot", AT_ONCE, false,
    |me| definition::<SnapshotArguments>(me.name(), "Telemetry", "Counts and latencies since this server started, and cost by day.", READS),
    telemetry
}

async fn telemetry(source: &HealthSource, call: ToolCall) -> Result<ToolReply, Fault> {
    let shape = snapshot_shape(&call)?;
    let mut value = source.telemetry().await?;
    reply::tidy(&mut value);
    Ok(reply::object(&value, serde_json::to_string_pretty(&value).unwrap_or_default(), shape))
}
