//! An executor that notes when steps are submitted and makes their candidates up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use neuron_fake::clock::Clock;
use njoule_runtime::backend::neuron::executor::NeuronExecutor;
use njoule_runtime::backend::{Batch, Cost, CostModel, Executor, MemoryUse, StepError, StepOutput};
use njoule_runtime::request::TokenMask;

use super::answers::Answers;

/// One step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    pub sequences: usize,
    pub rows: usize,
    /// To the next submit, without what the measurement itself took.
    pub period: Duration,
    /// Of that, the device's runs.
    pub runs: Duration,
}

impl Step {
    /// What was not the device.
    pub fn beside(&self) -> Duration {
        self.period.saturating_sub(self.runs)
    }
}

/// Steps of one case, shared with who reads them.
#[derive(Clone, Debug)]
pub struct Steps(Arc<Mutex<Vec<Step>>>);

impl Steps {
    pub fn with_capacity(steps: usize) -> Steps {
        Steps(Arc::new(Mutex::new(Vec::with_capacity(steps))))
    }

    pub fn lock(&self) -> MutexGuard<'_, Vec<Step>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loaded model that several engines use, one after the other.
pub struct Timed {
    executor: Arc<Mutex<NeuronExecutor>>,
    clock: Arc<Clock>,
    steps: Steps,
    /// Of the step that runs.
    step: Step,
    submitted: Instant,
    ran: Duration,
    made_up: Duration,
    answers: Answers,
}

impl Timed {
    pub fn new(executor: NeuronExecutor, clock: Arc<Clock>, answers: Answers) -> Timed {
        Timed::over(Arc::new(Mutex::new(executor)), clock, Steps::with_capacity(0), answers)
    }

    /// The same model, whose steps go there and which wants what a mask allows.
    pub fn noting(&self, steps: &Steps, wanted: Option<Arc<dyn TokenMask>>) -> Timed {
        Timed::over(self.executor.clone(), self.clock.clone(), steps.clone(), self.answers.of(wanted))
    }

    fn over(executor: Arc<Mutex<NeuronExecutor>>, clock: Arc<Clock>, steps: Steps, answers: Answers) -> Timed {
        let (submitted, ran, step) = (Instant::now(), clock.run_time(), Step::default());
        Timed { executor, clock, steps, step, submitted, ran, made_up: Duration::ZERO, answers }
    }

    fn executor(&self) -> MutexGuard<'_, NeuronExecutor> {
        self.executor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor for Timed {
    fn submit(&mut self, batch: &Batch) -> Result<(), StepError> {
        let (now, ran) = (Instant::now(), self.clock.run_time());
        self.step.period = (now - self.submitted).saturating_sub(std::mem::take(&mut self.made_up));
        self.step.runs = ran.saturating_sub(self.ran);
        self.steps.lock().push(self.step);
        self.step = Step { sequences: batch.seqs.len(), rows: batch.rows(), ..Step::default() };
        self.answers.ask(batch);
        (self.submitted, self.ran) = (Instant::now(), ran);
        self.executor().submit(batch)
    }

    fn collect(&mut self, out: &mut StepOutput) -> Result<(), StepError> {
        self.executor().collect(out)?;
        let start = Instant::now();
        self.answers.make_up(&mut out.candidates);
        self.made_up = start.elapsed();
        Ok(())
    }

    fn cost(&self, batch: &Batch) -> Cost {
        self.executor().cost(batch)
    }

    fn cost_model(&self) -> CostModel {
        self.executor().cost_model()
    }

    fn cores(&self) -> Option<usize> {
        self.executor().cores()
    }

    fn memory(&self) -> MemoryUse {
        self.executor().memory()
    }
}
