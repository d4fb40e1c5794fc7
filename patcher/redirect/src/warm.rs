//! What is made once for a whole command.

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Decoder, DecoderOptions, InstructionBlock, InstructionInfoFactory,
};

/// Builds the tables of decoder and encoder, which would be built when first needed. They take 0.8 ms,
/// time that another thread has while a process is being read.
pub fn warm_up() {
    let nop = Decoder::new(64, &[0x90], DecoderOptions::NONE).decode();
    // Only the tables matter, not what comes of the instruction.
    let _ = InstructionInfoFactory::new().info(&nop);
    let _ = BlockEncoder::encode(64, InstructionBlock::new(&[nop], 0), BlockEncoderOptions::NONE);
}
