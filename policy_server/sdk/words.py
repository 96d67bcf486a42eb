"""Words that a property can't be named in each language, in the language's own spelling.

They are the language's keywords and literals, and the names in the code of a generated model.
"""

from __future__ import annotations

import keyword

from pydantic import BaseModel

__all__ = [
    "CSHARP_WORDS",
    "GO_WORDS",
    "JAVA_WORDS",
    "KOTLIN_WORDS",
    "PYTHON_WORDS",
    "R_WORDS",
    "SCALA_KEYWORDS",
    "SCALA_WORDS",
    "TYPESCRIPT_WORDS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The types stand in annotations, which pydantic reads in the class itself. The last ones the
# generator renames on its own.
PYTHON_WORDS = (
    frozenset(keyword.kwlist)
    | frozenset(dir(BaseModel))
    | _words("bool bytes date datetime dict float int list object property set str tuple")
    | _words("from_dict from_json model_config to_dict to_json to_str")
    | _words(
        """
        all_params auth_settings base64 body_params cls exec false field form_params header_params
        local_var_files none path_params print query_params resource_path self true
        """
    )
)
JAVA_WORDS = _words(
    """
    abstract assert boolean break byte case catch char class const continue default do double else
    enum extends false final finally float for goto if implements import instanceof int interface
    long native new null package private protected public return short static strictfp super switch
    synchronized this throw throws transient true try void volatile while
    com jakarta java org
    """
)
SCALA_KEYWORDS = _words(
    """
    abstract case catch class def do else enum export extends false final finally for forSome given
    if implicit import lazy macro match new null object override package private protected return
    sealed super then this throw trait true try type val var while with yield _
    """
)
# Members of every case class.
SCALA_WORDS = _words(
    """
    asInstanceOf canEqual clone copy eq equals finalize getClass hashCode isInstanceOf ne notify
    notifyAll productArity productElement productElementName productElementNames productIterator
    productPrefix synchronized toString wait
    """
)
# Members of every model, and names that R6 reserves. R's own words stand in backticks.
R_WORDS = _words(
    """
    clone finalize fromJSON fromJSONString getInvalidFields initialize isValid print private self
    super toJSON toJSONString toList toSimpleType toString validateJSON
    """
)
TYPESCRIPT_WORDS = _words("__proto__")
# Members of every model, and keywords: the constructor's argument begins with a small letter.
CSHARP_WORDS = _words(
    """
    Equals Finalize GetHashCode GetType MemberwiseClone Newtonsoft Observation ReferenceEquals
    ToJson ToString
    Abstract As Await Base Bool Break Byte Case Catch Char Checked Class Client Configuration Const
    Continue Decimal Default Delegate Do Double Else Enum Environment Event Explicit Extern False
    Finally Fixed Float For Foreach Goto If Implicit In Int Interface Internal Is Lock Long
    Namespace New Null Object OperatingSystem Operator Out Override Parameter Params Private
    Protected Public Readonly Ref Return Sbyte Sealed Short Sizeof Stackalloc Static String Struct
    Switch System This Throw TimeZone True Try Typeof Uint Ulong Unchecked Unsafe Ushort Using
    Version Virtual Void Volatile While
    """
)
GO_WORDS = _words("MarshalJSON This ToMap UnmarshalJSON")
KOTLIN_WORDS = _words(
    """
    as break class continue do else false for fun if in interface is null object package return
    super this throw true try typealias typeof val var when while
    """
)
