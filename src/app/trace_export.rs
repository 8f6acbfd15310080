//! Sends finished spans to the collector of `[tracing]`, in batches, as OTLP over HTTP in JSON.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::Method;
use http::header;
use tokio::task::JoinHandle;

use crate::adapters::transport::Call;
use crate::adapters::transport::Client;
use crate::config::TraceExport;
use crate::model::limits;
use crate::runtime::Clock;
use crate::runtime::Tasks;
use crate::telemetry;
use crate::telemetry::FinishedSpan;
use crate::telemetry::Metrics;

/// Time between two batches.
const PAUSE: Duration = Duration::from_secs(1);
/// Time for the last batch when the gateway stops.
const LAST: Duration = Duration::from_secs(2);

/// The task that exports spans.
#[derive(Debug)]
pub(crate) struct TraceExporter {
    sender: Arc<SpanSender>,
    task: JoinHandle<()>,
}

/// Sends batches, and knows whether the last one arrived.
#[derive(Debug)]
struct SpanSender {
    client: Client,
    export: TraceExport,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl TraceExporter {
    /// Begins to record and to send spans. `None` where the client cannot be made, which is logged: a gateway without traces is
    /// better than none.
    pub(crate) fn start(
        export: &TraceExport,
        clock: &Arc<dyn Clock>,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Option<Self> {
        let client = match export.client() {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(%error, "traces not exported");
                return None;
            }
        };
        let sender = Arc::new(SpanSender {
            client,
            export: export.clone(),
            clock: Arc::clone(clock),
            metrics: Arc::clone(metrics),
        });
        telemetry::start_recording_spans();
        let task = tasks.spawn(Arc::clone(&sender).repeated());
        Some(Self { sender, task })
    }

    /// Sends what is left, for a short time.
    pub(crate) async fn stop(self) {
        self.task.abort();
        // Aborted is how it ends. What it was sending is lost, as in a failed request.
        drop(self.task.await);
        drop(tokio::time::timeout(LAST, self.sender.send_all()).await);
    }
}

impl SpanSender {
    async fn repeated(self: Arc<Self>) {
        let mut is_reported = false;
        loop {
            tokio::time::sleep(PAUSE).await;
            match self.send_all().await {
                Ok(()) if is_reported => {
                    tracing::info!("traces exported again");
                    is_reported = false;
                }
                Err(error) if !is_reported => {
                    tracing::warn!(error, "traces not exported");
                    is_reported = true;
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// Sends everything that is recorded. What cannot be sent is dropped and counted: traces must not fill the memory.
    async fn send_all(&self) -> Result<(), String> {
        let taken = telemetry::take_spans();
        self.count("dropped", taken.dropped);
        let mut result = Ok(());
        for batch in taken.spans.chunks(limits::SPANS_AT_ONCE_MAX) {
            let number = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            match self.send(batch).await {
                Ok(()) => self.count("exported", number),
                Err(error) => {
                    self.count("failed", number);
                    result = Err(error);
                }
            }
        }
        result
    }

    async fn send(&self, batch: &[FinishedSpan]) -> Result<(), String> {
        let mut call = Call::new(Method::POST, &[])
            .with_raw_target(&self.export.target)
            .header(header::USER_AGENT, HeaderValue::from_static("snapgate"))
            .json(telemetry::encode_spans(batch));
        if let Some(authorization) = &self.export.authorization {
            call = call
                .secret_header(header::AUTHORIZATION, authorization)
                .map_err(|error| error.to_string())?;
        }
        let by = self.clock.deadline(limits::SPANS_TIMEOUT);
        let reply = self.client.call(call, by).await;
        let reply = reply.map_err(|error| error.to_string())?;
        if reply.status.is_success() {
            return Ok(());
        }
        Err(format!("the collector answers {}", reply.status))
    }

    fn count(&self, result: &str, number: u64) {
        self.metrics.process.record_spans(result, number);
    }
}
