"""The public names, and the module that each comes from. `__init__.py` reads this list."""

from specdec_ref.acceptance import Verdict as Verdict
from specdec_ref.acceptance import Verify as Verify
from specdec_ref.acceptance import acceptance_probability as acceptance_probability
from specdec_ref.acceptance import acceptance_rate as acceptance_rate
from specdec_ref.acceptance import residual as residual
from specdec_ref.acceptance import verify as verify
from specdec_ref.api import Chunk as Chunk
from specdec_ref.api import Generation as Generation
from specdec_ref.api import generate_autoregressive as generate_autoregressive
from specdec_ref.api import generate_speculative as generate_speculative
from specdec_ref.api import stream_speculative as stream_speculative
from specdec_ref.beyond.block import verify_block as verify_block
from specdec_ref.beyond.suffix import SuffixDrafter as SuffixDrafter
from specdec_ref.beyond.trees import BestFirstDrafter as BestFirstDrafter
from specdec_ref.beyond.trees import TreeDrafter as TreeDrafter
from specdec_ref.beyond.trees import verify_tree as verify_tree
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
from specdec_ref.models import TreeModel as TreeModel
from specdec_ref.sampling import GREEDY as GREEDY
from specdec_ref.sampling import Randomness as Randomness
from specdec_ref.sampling import Sampling as Sampling
from specdec_ref.sampling import SeededRandomness as SeededRandomness
from specdec_ref.theory import best_k as best_k
from specdec_ref.theory import break_even_alpha as break_even_alpha
from specdec_ref.theory import expected_tokens as expected_tokens
from specdec_ref.theory import predicted_speedup as predicted_speedup

__version__: str
