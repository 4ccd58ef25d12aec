"""The public names, and the module that each comes from. `__init__.py` reads this list."""

from specdec_ref.acceptance import Verdict as Verdict
from specdec_ref.acceptance import acceptance_probability as acceptance_probability
from specdec_ref.acceptance import acceptance_rate as acceptance_rate
from specdec_ref.acceptance import residual as residual
from specdec_ref.acceptance import verify as verify
from specdec_ref.api import Chunk as Chunk
from specdec_ref.api import Generation as Generation
from specdec_ref.api import generate_autoregressive as generate_autoregressive
from specdec_ref.api import generate_speculative as generate_speculative
from specdec_ref.api import stream_speculative as stream_speculative
from specdec_ref.beyond.heads import FeatureHead as FeatureHead
from specdec_ref.beyond.heads import HeadConfig as HeadConfig
from specdec_ref.beyond.heads import HeadDrafter as HeadDrafter
from specdec_ref.beyond.heads import ParallelHead as ParallelHead
from specdec_ref.beyond.heads import ParallelHeadDrafter as ParallelHeadDrafter
from specdec_ref.beyond.heads import head_config as head_config
from specdec_ref.beyond.heads import load_head as load_head
from specdec_ref.beyond.heads import save_head as save_head
from specdec_ref.cache import RewindableCache as RewindableCache
from specdec_ref.control import CostModelSpeculation as CostModelSpeculation
from specdec_ref.control import FixedK as FixedK
from specdec_ref.decoding import Controller as Controller
from specdec_ref.decoding import Round as Round
from specdec_ref.decoding import Row as Row
from specdec_ref.decoding import speculate as speculate
from specdec_ref.drafting import Draft as Draft
from specdec_ref.drafting import Drafter as Drafter
from specdec_ref.drafting import ModelDrafter as ModelDrafter
from specdec_ref.drafting import PromptLookupDrafter as PromptLookupDrafter
from specdec_ref.errors import SpecdecError as SpecdecError
from specdec_ref.loading import Pair as Pair
from specdec_ref.loading import held_out_prompts as held_out_prompts
from specdec_ref.loading import load_pair as load_pair
from specdec_ref.loading import shipped as shipped
from specdec_ref.models import LanguageModel as LanguageModel
from specdec_ref.models import TransformersModel as TransformersModel
from specdec_ref.sampling import GREEDY as GREEDY
from specdec_ref.sampling import Randomness as Randomness
from specdec_ref.sampling import Sampling as Sampling
from specdec_ref.sampling import SeededRandomness as SeededRandomness
from specdec_ref.theory import best_k as best_k
from specdec_ref.theory import break_even_alpha as break_even_alpha
from specdec_ref.theory import expected_tokens as expected_tokens
from specdec_ref.theory import predicted_speedup as predicted_speedup

__version__: str
