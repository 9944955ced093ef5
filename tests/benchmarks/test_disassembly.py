"""Reading loops out of a disassembly: small listings whose instructions can be counted by eye."""

from inhibidistilbert.benchmarks.disassembly import nvidia_spills, read_amd, read_nvidia, streaming_loops

NVIDIA = """
\t.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P1 BRA `(.L_x_9) ;
.L_x_0:
        /*0020*/                   VIMNMX R3, R4, R5, PT ;
.L_x_1:
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.U16 R9, desc[UR4][R2.64+0x10] ;
        /*0050*/                   LDG.E R9, desc[UR4][R2.64+0x20] ;
        /*0060*/              @!P0 FADD.FTZ R6, |R8|, -R9 ;
        /*0070*/               @P0 BRA `(.L_x_1) ;
        /*0080*/         @!UPT UIADD3 UR4, UR4, 0x1, URZ ;
        /*0090*/                   BRA `(.L_x_0) ;
.L_x_2:
        /*00a0*/                   LDG.E.64 R8, desc[UR4][R2.64] ;
        /*00b0*/                   FMNMX.XORSIGN R6, |R8|, |R9|, PT ;
        /*00c0*/                   LDL R7, [R1] ;
        /*00d0*/              @!P2 BRA `(.L_x_2) ;
.L_x_3:
        /*00e0*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*00f0*/                   STG.E desc[UR4][R2.64], R8 ;
        /*0100*/               @P3 BRA `(.L_x_3) ;
        /*0110*/                   STL [R1], R7 ;
.L_x_9:
        /*0120*/                   EXIT ;
"""
AMD = """
_kernel:                                ; @_kernel
; %bb.0:
\ts_load_dwordx2 s[4:5], s[0:1], 0x0 // 000000001000: C0060100
.LBB0_1:                                ; =>This Loop Header: Depth=1
\ts_cmp_lg_u32 s0, 0
.LBB0_2:                                ;   Parent Loop BB0_1 Depth=1
\tbuffer_load_dwordx4 v[0:3], v9, s[4:7], 0 offen
\tglobal_load_ushort v4, v9, s[4:5]
\ts_waitcnt vmcnt(0)
\tv_med3_f32 v5, v0, v1, v2
\tv_readlane_b32 s8, v40, 3
\ts_cbranch_scc1 .LBB0_2
; %bb.3:
\ts_cbranch_vccnz .LBB0_1
.LBB0_4:
\tbuffer_load_dword v0, v9, s[4:7], 0 offen
\tbuffer_store_dword v0, v9, s[4:7], 0 offen
\ts_cbranch_scc1 .LBB0_4
\ts_endpgm
\t.section\t.AMDGPU.csdata
"""


def test_instructions_without_their_predicates():
    listing = read_nvidia(NVIDIA)
    assert len(listing.instructions) == 19
    assert listing.instructions[1] == "BRA `(.L_x_9)"
    assert listing.instructions[6] == "FADD.FTZ R6, |R8|, -R9"
    assert listing.instructions[8] == "UIADD3 UR4, UR4, 0x1, URZ"


def test_forward_branches_are_no_loops():
    assert read_nvidia(NVIDIA).backward == ((3, 7), (2, 9), (10, 13), (14, 16))


def test_nvidia_loops_that_read_and_do_not_store_innermost_only():
    prepass, main = streaming_loops(read_nvidia(NVIDIA), nvidia=True)
    assert (len(prepass.instructions), prepass.loaded, prepass.clamps, prepass.spills) == (5, 16 + 2 + 4, False, 0)
    assert (len(main.instructions), main.loaded, main.clamps, main.spills) == (4, 8, True, 1)


def test_nvidia_spills_of_the_whole_kernel():
    assert nvidia_spills(read_nvidia(NVIDIA).instructions) == 2


def test_integer_minima_are_no_clamps():
    listing = read_nvidia(NVIDIA.replace("FMNMX.XORSIGN", "VIMNMX"))
    assert [loop.clamps for loop in streaming_loops(listing, nvidia=True)] == [False, False]


def test_relu_of_a_fused_operation_is_a_clamp():
    listing = read_nvidia(NVIDIA.replace("FMNMX.XORSIGN", "HFMA2.RELU"))
    assert [loop.clamps for loop in streaming_loops(listing, nvidia=True)] == [False, True]


def test_amd_loops():
    (loop,) = streaming_loops(read_amd(AMD), nvidia=False)
    assert [text.split()[0] for text in loop.instructions] == [
        "buffer_load_dwordx4",
        "global_load_ushort",
        "s_waitcnt",
        "v_med3_f32",
        "v_readlane_b32",
        "s_cbranch_scc1",
    ]
    assert (loop.loaded, loop.clamps, loop.spills, loop.stores) == (18, True, 1, False)
