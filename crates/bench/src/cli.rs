//! The command line: groups of fixed workloads, and the same workloads at any shape.
//!
//! A group may have the name of a parametric workload (`mlp`): a line of group names alone means
//! the groups, as in the PyTorch script; anything else is read by clap. Limits on time and
//! repetitions go with both.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use entrenar_core::DType;
use entrenar_zoo::GptConfig;

use crate::workloads::{Case, GROUPS, cnn, gemm, gpt, mlp};

/// Times workloads of entrenar: one JSON line each with workload, median_s, min_s, n, peak_mb.
///
/// Without a subcommand, runs the fixed workloads of the named groups (all groups without a
/// name), each in a process of its own. The subcommands run the same code at any shape.
#[derive(Parser, Debug)]
#[command(name = "bench", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Environment: ENTRENAR_THREADS sets the number of threads, \
    ENTRENAR_SIMD=baseline|avx2|avx512 lowers the instruction set."
)]
pub struct Cli {
    /// What to run instead of groups.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Groups of fixed workloads; all of them without a name.
    #[arg(value_name = "GROUP")]
    #[arg(value_parser = PossibleValuesParser::new(GROUPS.iter().map(|g| g.name)))]
    pub groups: Vec<String>,
    /// List the groups with their cases and run nothing.
    #[arg(long)]
    pub list: bool,
    /// Run only cases with this text in their name.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Run only cases of this precision.
    #[arg(long)]
    pub precision: Option<Precision>,
    #[command(flatten)]
    pub limits: Limits,
}

/// Everything but the groups.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Training steps of a GPT of any size with AdamW on random tokens.
    Gpt(GptArguments),
    /// Training steps of a perceptron of any size with Adam.
    Mlp(MlpArguments),
    /// Training steps of a convolutional classifier of any size with Adam.
    Cnn(CnnArguments),
    /// A matrix product: [M, K] times [K, N].
    Gemm(GemmArguments),
    /// Single operations and layers: prints their times, records them or compares them.
    Ops(OpsArguments),
    /// Repeats a small workload on one thread, for a counter of instructions.
    Count {
        /// Which one: tinyop, xor, mlp, cnn or gpt.
        name: String,
        /// How often its step is called.
        #[arg(long, default_value_t = 1, value_parser = at_least_one)]
        calls: usize,
    },
    /// Prints the memory of training adapters on a base in floats and on one in 4 bits.
    MemoryQlora(MemoryArguments),
    /// One fixed case in this process, by the name that `--list` prints.
    Case {
        /// The name.
        id: String,
        #[command(flatten)]
        limits: Limits,
    },
}

/// How long to measure.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Runs before counting [default: 3].
    #[arg(long, value_name = "N")]
    pub warm: Option<usize>,
    /// Counted runs at most [default: that of the PyTorch script for the workload, 6 to 30].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub reps: Option<usize>,
    /// No new run starts after this many seconds [default: 40].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub budget: Option<f64>,
}

/// What `bench ops` does with the times.
#[derive(Args, Debug)]
pub struct OpsArguments {
    /// Write the times to this file.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Compare with this file, written by --record; the exit status is 1 when anything is slower.
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// How much slower an operation may be.
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = margin)]
    pub margin: Margin,
    /// Time only what has this text in its name.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Milliseconds for each time.
    #[arg(long, value_name = "MILLISECONDS", default_value = "25", value_parser = milliseconds)]
    pub budget: Duration,
}

/// What `bench memory-qlora` trains.
#[derive(Args, Debug)]
pub struct MemoryArguments {
    /// Rank of the adapters.
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    pub rank: usize,
}

/// A part of one: 0.1 for 10 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Margin(pub f64);

/// In which type the matrix products of a model run.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Single precision throughout.
    F32,
    /// Mixed precision: products in bfloat16, parameters and sums in single precision.
    Bf16,
}

impl Precision {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }
}

/// Element types of `bench gemm`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmType {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE double precision.
    F64,
    /// Signed bytes with i32 sums.
    I8,
}

impl GemmType {
    /// The dtype of the operands.
    pub fn dtype(self) -> DType {
        match self {
            GemmType::F32 => DType::F32,
            GemmType::Bf16 => DType::BF16,
            GemmType::F16 => DType::F16,
            GemmType::F64 => DType::F64,
            GemmType::I8 => DType::I8,
        }
    }
}

/// Sizes of `bench gpt`; the defaults are the small character model's.
#[derive(Args, Debug)]
pub struct GptArguments {
    /// Number of tokens.
    #[arg(long, default_value_t = 65, value_parser = at_least_one)]
    vocab: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    context: usize,
    /// Number of blocks.
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    layers: usize,
    /// Size of a position's vector; a multiple of the heads.
    #[arg(long, default_value_t = 128, value_parser = at_least_one)]
    width: usize,
    /// Attention heads of a block.
    #[arg(long, default_value_t = 4, value_parser = at_least_one)]
    heads: usize,
    /// Sequences of a step.
    #[arg(long, default_value_t = 12, value_parser = at_least_one)]
    batch: usize,
    /// In which type the matrix products run.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    #[command(flatten)]
    pub limits: Limits,
}

impl GptArguments {
    /// The workload.
    pub fn case(&self) -> Case {
        let config = GptConfig {
            vocabulary: self.vocab,
            context: self.context,
            layers: self.layers,
            heads: self.heads,
            width: self.width,
            ..Default::default()
        };
        let name = format!(
            "gpt_V{}_{}L{}d{}h_T{}_B{}",
            self.vocab, self.layers, self.width, self.heads, self.context, self.batch
        );
        gpt::case(name, config, self.batch, self.precision, 10)
    }
}

/// Sizes of `bench mlp`.
#[derive(Args, Debug)]
pub struct MlpArguments {
    /// Inputs, hidden sizes and outputs, separated by commas.
    #[arg(long, value_name = "N,N,…", default_value = "784,256,128,10", value_parser = sizes)]
    sizes: Sizes,
    /// Rows of a step.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    batch: usize,
    /// In which type the matrix products run.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    #[command(flatten)]
    pub limits: Limits,
}

impl MlpArguments {
    /// The workload.
    pub fn case(&self) -> Case {
        mlp::classifier(&self.sizes.0, self.batch, self.precision)
    }
}

/// Sizes of `bench cnn`.
#[derive(Args, Debug)]
pub struct CnnArguments {
    /// Channels of the image and of each stage, separated by commas.
    #[arg(long, value_name = "N,N,…", default_value = "1,32,64", value_parser = sizes)]
    channels: Sizes,
    /// Height and width of the image; each stage halves it.
    #[arg(long, default_value_t = 28, value_parser = at_least_one)]
    size: usize,
    /// Images of a step.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    batch: usize,
    /// In which type the matrix products run.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    #[command(flatten)]
    pub limits: Limits,
}

impl CnnArguments {
    /// The workload.
    pub fn case(&self) -> Case {
        cnn::case(&self.channels.0, self.size, self.batch, self.precision)
    }
}

/// Sizes of `bench gemm`.
#[derive(Args, Debug)]
pub struct GemmArguments {
    /// Rows of the left operand and of the result.
    #[arg(value_parser = at_least_one)]
    m: usize,
    /// Columns of the right operand and of the result.
    #[arg(value_parser = at_least_one)]
    n: usize,
    /// Columns of the left operand, rows of the right one.
    #[arg(value_parser = at_least_one)]
    k: usize,
    /// Type of both operands.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: GemmType,
    #[command(flatten)]
    pub limits: Limits,
}

impl GemmArguments {
    /// The workload.
    pub fn case(&self) -> Case {
        gemm::case((self.m, self.n, self.k), self.dtype)
    }
}

/// At least two sizes.
#[derive(Clone, Debug, PartialEq)]
struct Sizes(Vec<usize>);

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number of at least 1".into()),
    }
}

fn sizes(text: &str) -> Result<Sizes, String> {
    let list: Result<Vec<usize>, String> =
        text.split(',').map(|s| at_least_one(s.trim())).collect();
    match list {
        Ok(list) if list.len() >= 2 => Ok(Sizes(list)),
        _ => Err("expected at least two sizes of at least 1, such as 784,256,10".into()),
    }
}

fn margin(text: &str) -> Result<Margin, String> {
    match text.trim().trim_end_matches('%').trim().parse::<f64>() {
        Ok(percent) if percent >= 0.0 && percent.is_finite() => Ok(Margin(percent / 100.0)),
        _ => Err("expected a percentage such as 10%".into()),
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(ms) if ms > 0.0 && ms <= 1e6 => Ok(Duration::from_secs_f64(ms / 1000.0)),
        _ => Err("expected a number of milliseconds above 0".into()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(s) if s > 0.0 => Ok(s),
        _ => Err("expected a number of seconds above 0".into()),
    }
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// clap's: its message is ready to print.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Cli, clap::Error> {
    let arguments: Vec<String> = arguments.into_iter().collect();
    let (program, rest) = arguments.split_at(arguments.len().min(1));
    let is_group = |a: &String| GROUPS.iter().any(|g| g.name == a);
    if !rest.is_empty() && rest.iter().all(is_group) {
        // `--` keeps clap from taking a group for the subcommand of the same name.
        let line = program.iter().cloned().chain(["--".into()]);
        return Cli::try_parse_from(line.chain(rest.iter().cloned()));
    }
    Cli::try_parse_from(&arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn the_description_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn names_alone_are_groups_even_where_a_subcommand_has_the_name() {
        for line in ["bench mlp", "bench gpt_small mlp", "bench gemm cnn mlp xor"] {
            let cli = read(line).unwrap();
            assert!(cli.command.is_none(), "{line}");
            let names: Vec<&str> = line.split_whitespace().skip(1).collect();
            assert_eq!(cli.groups, names);
        }
        assert!(read("bench").unwrap().groups.is_empty());
    }

    #[test]
    fn options_make_a_parametric_workload() {
        let Some(Command::Mlp(a)) = read("bench mlp --sizes 784,256,10 --batch 32")
            .unwrap()
            .command
        else {
            panic!("no mlp")
        };
        assert_eq!(a.case().name, "mlp_784_256_10_b32_adam");
        let Some(Command::Gemm(a)) = read("bench gemm 64 32 16 --dtype bf16").unwrap().command
        else {
            panic!("no gemm")
        };
        assert_eq!(a.case().name, "gemm_bfloat16_64x32x16");
        let Some(Command::Cnn(a)) = read("bench cnn --batch 64").unwrap().command else {
            panic!("no cnn")
        };
        assert_eq!(a.case().name, "cnn_mnist_b64");
        let Some(Command::Gpt(a)) = read("bench gpt --vocab 9 --heads 2 --reps 4")
            .unwrap()
            .command
        else {
            panic!("no gpt")
        };
        assert_eq!(a.case().name, "gpt_V9_4L128d2h_T64_B12");
        assert_eq!(a.limits.reps, Some(4));
        let Some(Command::Ops(a)) = read("bench ops --margin 12.5%").unwrap().command else {
            panic!("no ops")
        };
        assert_eq!(a.margin, Margin(0.125));
    }

    #[test]
    fn wrong_arguments_are_explained() {
        for (line, part) in [
            ("bench mlp --sizes 784", "at least two sizes of at least 1"),
            (
                "bench cnn --channels 1,0",
                "at least two sizes of at least 1",
            ),
            ("bench gpt --batch 0", "a whole number of at least 1"),
            ("bench gemm 64 64", "<K>"),
            ("bench ops --margin=-5%", "a percentage such as 10%"),
            ("bench ops --budget x", "milliseconds above 0"),
            ("bench gemm 64 64 64 --dtype f8", "possible values: f32"),
            ("bench --budget=-1 mlp", "seconds above 0"),
            ("bench nonsense", "possible values: gemm"),
        ] {
            let text = read(line).unwrap_err().to_string();
            assert!(text.contains(part), "{line}: {text}");
        }
    }
}
